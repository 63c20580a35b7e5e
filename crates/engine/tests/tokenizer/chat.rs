//! Chat templates against what jinja2 renders with the settings of `transformers` (the expected
//! strings were made with jinja2 3.1.6: sandbox, `trim_blocks`, `lstrip_blocks`, loop controls,
//! `tojson` by `json.dumps(ensure_ascii=False)`).

use mutandis_engine::tokenizer::{ChatTemplate, Message};

use super::support::{gemma3, smollm2};

fn turns(list: &[(&str, &str)]) -> Vec<Message> {
    list.iter().map(|(role, content)| Message::new(*role, *content)).collect()
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, Some("<bos>".into()), Some("<eos>".into())).unwrap()
}

#[test]
fn smollm2_renders_as_in_jinja2() {
    let Some(tokenizer) = smollm2() else { return };
    let template = tokenizer.chat_template().unwrap();
    let prompt = turns(&[("user", "What is the capital of France?")]);
    let text = template.render(&prompt, true).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging \
         Face<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n\
         <|im_start|>assistant\n"
    );
    let ids = tokenizer.encode_with_specials(&text).unwrap().ids;
    assert_eq!(ids.iter().filter(|&&id| id == 1).count(), 3);
    assert_eq!(ids.iter().filter(|&&id| id == 2).count(), 2);
    let talk =
        turns(&[("system", "Be brief."), ("user", "Hi <b>&\n"), ("assistant", "  Hello\t"), ("user", "Où?")]);
    assert_eq!(
        template.render(&talk, false).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b>&\n<|im_end|>\n\
         <|im_start|>assistant\n  Hello\t<|im_end|>\n<|im_start|>user\nOù?<|im_end|>\n"
    );
}

#[test]
fn a_model_without_a_template_says_so() {
    let Some(tokenizer) = gemma3() else { return };
    let error = tokenizer.chat_template().unwrap_err();
    assert!(error.to_string().contains("has none"), "{error}");
    assert!(error.hint().unwrap().contains("--chat"));
}

/// Written for this test: what templates of the Gemma and Llama families make use of.
const TURNS: &str = r#"{{ bos_token }}
{%- set ns = namespace(lead='', seen=0) -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set ns.lead = messages[0]['content'].strip() + '\n\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("roles must alternate, found " + message['role'] + " twice") }}
    {%- endif -%}
    {%- set role = 'model' if message.role == 'assistant' else message.role -%}
    {{ '<start_of_turn>' + role + '\n' + (ns.lead if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"#;

#[test]
fn turns_alternate_as_in_jinja2() {
    let talk =
        turns(&[("system", " Be brief. "), ("user", " Hi\n"), ("assistant", "Hello"), ("user", "<b>?")]);
    assert_eq!(
        template(TURNS).render(&talk, true).unwrap(),
        "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n\
         Hello<end_of_turn>\n<start_of_turn>user\n<b>?<end_of_turn>\n<start_of_turn>model\n"
    );
    let error = template(TURNS).render(&turns(&[("user", "a"), ("user", "b")]), true).unwrap_err();
    assert!(error.to_string().contains("roles must alternate, found user twice"), "{error}");
}

const HELPERS: &str = r#"{% for m in messages %}
  {% if m.role == 'skip' %}
    {% continue %}
  {% endif %}
{{ loop.index }}|{{ m.role.upper() }}|{{ m | tojson }}|{{ m.content.split('</t>')[-1].lstrip('\n') }}|{{ 'x' if m.content.startswith('<t>') and not m.content.endswith('?') else 'y' }}
    {# a comment #}
  {% if m.role == 'stop' %}{% break %}{% endif %}
{% endfor %}
{{ messages[0] | tojson(indent=2) }}
{{ tools is none }} {{ documents }} {{ undefined_thing is defined }} {{ bos_token }}{{ eos_token }} {{ messages|length }} {{ messages[-1]['content'] | length }}
{% if tools %}no{% endif %}
{{ messages | map(attribute='role') | join(',') }} {{ '%s-%d' | format('a', 3) }} {{ "a" ~ 1 }} {{ "O'Neil <&>" | tojson }} {{ [1, 2.5, true, none] | tojson }} {{ {} | tojson }} {{ [] | tojson(indent=4) }}
"#;

#[test]
fn helpers_work_as_in_jinja2() {
    let talk = turns(&[
        ("user", "<t>é</t>\nplain \"q\"\\ <&>'"),
        ("skip", "?"),
        ("tool", "b?"),
        ("stop", "c"),
        ("never", "d"),
    ]);
    let expected = concat!(
        "1|USER|{\"role\": \"user\", \"content\": \"<t>é</t>\\nplain \\\"q\\\"\\\\ <&>'\"}|",
        "plain \"q\"\\ <&>'|x\n",
        "3|TOOL|{\"role\": \"tool\", \"content\": \"b?\"}|b?|y\n",
        "4|STOP|{\"role\": \"stop\", \"content\": \"c\"}|c|y\n",
        "{\n  \"role\": \"user\",\n",
        "  \"content\": \"<t>é</t>\\nplain \\\"q\\\"\\\\ <&>'\"\n}\n",
        "True None False <bos><eos> 5 1\n",
        "user,skip,tool,stop,never a-3 a1 \"O'Neil <&>\" [1, 2.5, true, null] {} []",
    );
    assert_eq!(template(HELPERS).render(&talk, true).unwrap(), expected);
}

#[test]
fn broken_templates_are_errors() {
    let error = ChatTemplate::new("a\n{% if %}", None, None).unwrap_err().to_string();
    assert!(error.contains("not valid") && error.contains("line 2"), "{error}");
    for source in ["{{ messages[7].content.split() }}", "{{ nothing.at.all }}", "{{ messages.nope() }}"] {
        let error = template(source).render(&turns(&[("user", "a")]), true).unwrap_err();
        assert!(error.to_string().contains("refuses"), "{source}: {error}");
    }
    let now = template("{{ strftime_now('%Y') }}").render(&[], false).unwrap();
    assert!((2024..2200).contains(&now.parse::<u32>().unwrap()));
}
