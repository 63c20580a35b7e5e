//! Records of every form as tasks.

use mutandis_edit::fact::{kind, texts, texts_noted};
use mutandis_edit::{Change, Fact, Probe};
use serde_json::{Map, Value};

use super::{Form, Task, ripple};

/// Forms that are told by their records; of several that as many records have, the first.
const FORMS: [Form; 5] = [Form::Facts, Form::CounterFact, Form::Mquake, Form::RippleEdits, Form::ConvSent];

/// A record as its form has it, with what of it is passed over, or what is wrong with it.
pub(super) type Read = Result<(Task, Vec<String>), String>;

/// Records, each by its own form, and the form of the file: what most of those look like that can be
/// used, so that odd ones do not spoil the rest; where none can, what most look like.
pub(super) fn read(records: Vec<Result<Value, String>>) -> (Form, Vec<Read>) {
    let own: Vec<Option<Form>> =
        records.iter().map(|r| r.as_ref().ok().and_then(Value::as_object).and_then(form)).collect();
    let most = |forms: &[Option<Form>]| {
        let count = |form: &Form| forms.iter().flatten().filter(|other| *other == form).count();
        // Of equals the last is taken.
        FORMS.into_iter().rev().max_by_key(count).unwrap_or(Form::Facts)
    };
    let looks = most(&own);
    let read: Vec<Read> = records
        .into_iter()
        .zip(&own)
        .map(|(record, own)| {
            let mut notes = vec![];
            let task = task(own.unwrap_or(looks), &record?, &mut notes)?;
            Ok((task, notes))
        })
        .collect();
    let usable: Vec<Option<Form>> =
        read.iter().zip(own).filter_map(|(r, form)| r.is_ok().then_some(form)).collect();
    let form = if usable.iter().flatten().next().is_some() { most(&usable) } else { looks };
    // Facts of whatever form are scored alike; opinions are not.
    let fits = |task: &Task| matches!(task, Task::Sentiment { .. }) == (form == Form::ConvSent);
    let kept = read.into_iter().map(|read| match read {
        Ok((task, _)) if !fits(&task) => {
            Err(format!("it is of another kind than the file's others, which are {}", form.name()))
        }
        read => read,
    });
    (form, kept.collect())
}

/// The form of a record, told by its fields.
fn form(record: &Map<String, Value>) -> Option<Form> {
    match record.get("requested_rewrite") {
        Some(Value::Array(_)) => Some(Form::Mquake),
        Some(Value::Object(_)) => Some(Form::CounterFact),
        _ if record.contains_key("pos") && record.contains_key("neg") => Some(Form::ConvSent),
        _ if record.get("edit").is_some_and(Value::is_object) => Some(Form::RippleEdits),
        _ if ["prompt", "src", "text"].iter().any(|name| record.contains_key(*name)) => Some(Form::Facts),
        _ => None,
    }
}

/// A record as a task; what of it is passed over is noted.
///
/// # Errors
/// Says what is wrong with it.
fn task(form: Form, record: &Value, notes: &mut Vec<String>) -> Result<Task, String> {
    let object = record.as_object().ok_or("it is no object")?;
    match form {
        Form::Facts => facts(object, notes),
        Form::CounterFact => counterfact(object, notes),
        Form::Mquake => mquake(object, notes),
        Form::RippleEdits => ripple::task(object, notes),
        Form::ConvSent => conv_sent(object, notes),
        Form::Sanitation => sanitation(object),
    }
}

/// Records of Sanitation that are to be forgotten.
pub(super) fn forgotten(records: Vec<Result<Value, String>>) -> Vec<Read> {
    records.into_iter().map(|record| Ok((task(Form::Sanitation, &record?, &mut vec![])?, vec![]))).collect()
}

/// One fact, with nothing to be generated.
pub(super) fn one(fact: Fact) -> Task {
    Task::Facts { facts: vec![fact], generation: vec![], reference: None }
}

/// A text of a record.
///
/// # Errors
/// Where it is missing or blank.
pub(super) fn text(object: &Map<String, Value>, name: &str) -> Result<String, String> {
    let found = object.get(name).map(texts).unwrap_or_default();
    found.into_iter().next().ok_or_else(|| format!("`{name}` is missing or blank"))
}

/// A field's texts, with notes of what is none.
struct Texts<'a> {
    object: &'a Map<String, Value>,
    notes: &'a mut Vec<String>,
}

impl Texts<'_> {
    /// All texts of a field; none where it is missing.
    fn all(&mut self, name: &str) -> Vec<String> {
        self.object.get(name).map(|value| texts_noted(name, value, self.notes)).unwrap_or_default()
    }
}

/// All texts of a field; none where it is missing.
fn all(object: &Map<String, Value>, name: &str) -> Vec<String> {
    object.get(name).map(texts).unwrap_or_default()
}

/// Prompts as probes of one kind.
fn probes(kind: &str, prompts: Vec<String>, answers: &[String]) -> Vec<Probe> {
    let probe = |prompt| Probe { kind: kind.to_owned(), prompt, answers: answers.to_vec() };
    prompts.into_iter().map(probe).collect()
}

/// EasyEdit's, KnowEdit's and MEND's records, with the portability questions that were made for
/// zsRE (EasyEdit's files of inverse relations, replaced subjects and one hop).
fn facts(object: &Map<String, Value>, notes: &mut Vec<String>) -> Result<Task, String> {
    let hop = one_hop(object);
    let mut own = object.clone();
    if !hop.is_empty() {
        own.remove("portability");
    }
    let (mut fact, passed_over) = Fact::with_notes(&Value::Object(own))?;
    notes.extend(passed_over);
    fact.portability.extend(hop);
    let inverse = all(object, "inverse question");
    fact.portability.extend(probes("inverse-relation", inverse, std::slice::from_ref(&fact.subject)));
    let replaced = all(object, "alter_subject_question");
    fact.portability.extend(probes("subject-replacement", replaced, std::slice::from_ref(&fact.target)));
    Ok(one(fact))
}

/// EasyEdit's question that takes the new answer one hop on, as its files of zsRE and CounterFact
/// have it.
fn one_hop(object: &Map<String, Value>) -> Vec<Probe> {
    match object.get("portability") {
        Some(Value::Object(hop)) => probes("one-hop", all(hop, "New Question"), &all(hop, "New Answer")),
        _ => vec![],
    }
}

/// `{"prompt": "… {} …", "subject", "target_new": {"str"}, "target_true": {"str"}}`.
fn rewrite(value: &Value) -> Result<Fact, String> {
    let object = value.as_object().ok_or("`requested_rewrite` is no object")?;
    let (template, subject) = (text(object, "prompt")?, text(object, "subject")?);
    let target = |name: &str| match object.get(name) {
        Some(Value::Object(target)) => text(target, "str").map_err(|e| format!("{name}: {e}")),
        _ => text(object, name),
    };
    if !template.contains("{}") {
        return Err(format!("the prompt `{template}` has no `{{}}` for the subject"));
    }
    let mut fact = Fact::new(template.replacen("{}", &subject, 1), subject, target("target_new")?)
        .map_err(|e| e.to_string())?;
    fact.ground_truth = target("target_true").ok();
    Ok(fact)
}

/// Ids of a rewrite's relation and new object.
fn reference(rewrite: &Value) -> Option<[String; 2]> {
    let id = |value: &Value| value.as_str().map(str::to_owned);
    Some([id(rewrite.get("relation_id")?)?, id(rewrite.get("target_new")?.get("id")?)?])
}

/// Kind of CounterFact's prompts about neighbours of the subject.
pub(crate) const NEIGHBORHOOD: &str = "neighborhood";

/// Kind of the wordings of a question that takes several facts together.
pub(crate) const MULTI_HOP: &str = "multi-hop";

/// ROME's CounterFact: neighbours have the old object, attribute prompts are true of the new one
/// before the edit and after. EasyEdit's file of it has neighbours behind the edited sentence, and a
/// question one hop on, too.
fn counterfact(object: &Map<String, Value>, notes: &mut Vec<String>) -> Result<Task, String> {
    let mut fact = rewrite(object.get("requested_rewrite").unwrap_or(&Value::Null))?;
    let (old, new): (Vec<String>, _) = (fact.ground_truth.iter().cloned().collect(), [fact.target.clone()]);
    let mut texts = Texts { object, notes };
    fact.rephrases = texts.all("paraphrase_prompts");
    fact.locality = probes(NEIGHBORHOOD, texts.all("neighborhood_prompts"), &old);
    fact.locality.extend(probes("attribute", texts.all("attribute_prompts"), &new));
    fact.locality.extend(probes("distracting", texts.all("distracting_neighborhood_prompts"), &old));
    fact.portability = one_hop(object);
    Ok(Task::Facts {
        facts: vec![fact],
        generation: texts.all("generation_prompts"),
        reference: reference(object.get("requested_rewrite").unwrap_or(&Value::Null)),
    })
}

/// Facts that a question takes together (arXiv 2305.14795). The question's wordings are probes of
/// the first fact; single hops that no edit touches are among them.
fn mquake(object: &Map<String, Value>, notes: &mut Vec<String>) -> Result<Task, String> {
    let rewrites = object.get("requested_rewrite").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut facts = rewrites.iter().map(rewrite).collect::<Result<Vec<Fact>, _>>()?;
    let first = facts.first_mut().ok_or("`requested_rewrite` is empty")?;
    let mut texts = Texts { object, notes };
    let answers = [vec![text(object, "new_answer")?], texts.all("new_answer_alias")].concat();
    first.portability = probes(MULTI_HOP, texts.all("questions"), &answers);
    if first.portability.is_empty() {
        return Err("`questions` is missing or empty".into());
    }
    let hops = object.get("new_single_hops").unwrap_or(&Value::Null);
    if !hops.is_array() && !hops.is_null() {
        notes.push(format!("`new_single_hops` is passed over: it is {}, expected a list", kind(hops)));
    }
    for hop in hops.as_array().into_iter().flatten() {
        let Some(object) = hop.as_object() else {
            notes.push(format!("{} in `new_single_hops` is passed over: it should be an object", kind(hop)));
            continue;
        };
        let mut texts = Texts { object, notes };
        let answers = [texts.all("answer"), texts.all("answer_alias")].concat();
        first.portability.extend(probes("single-hop", texts.all("question"), &answers));
    }
    Ok(Task::Facts { facts, generation: vec![], reference: None })
}

fn conv_sent(object: &Map<String, Value>, notes: &mut Vec<String>) -> Result<Task, String> {
    let mut texts = Texts { object, notes };
    let (positive, negative) = (texts.all("pos"), texts.all("neg"));
    if positive.is_empty() || negative.is_empty() {
        return Err("`pos` or `neg` is empty: both kinds of opinion are compared".into());
    }
    Ok(Task::Sentiment { topic: text(object, "ent")?.trim().to_owned(), positive, negative })
}

/// A question as Sanitation asks it (EasyEdit's runner).
fn asked(question: &str) -> String {
    format!("Question:{question}\nAnswer:")
}

fn sanitation(object: &Map<String, Value>) -> Result<Task, String> {
    let mut fact = Fact::new(
        asked(&text(object, "question")?),
        text(object, "subject").unwrap_or_default(),
        text(object, "target_new")?,
    )
    .map_err(|e| e.to_string())?;
    fact.ground_truth = Some(text(object, "ground_truth")?);
    fact.change = Change::Erase;
    Ok(one(fact))
}

/// A question of Sanitation whose answer is to stay.
///
/// # Errors
/// Says what is wrong with it.
pub(super) fn retained(record: &Value) -> Result<Probe, String> {
    let object = record.as_object().ok_or("it is no object")?;
    let prompt = asked(&text(object, "question")?);
    Ok(Probe { kind: "retained".into(), prompt, answers: all(object, "ground_truth") })
}
