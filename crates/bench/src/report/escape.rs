//! Texts of data sets and models go into pages; none of it may become markup there.

/// A letter as a page may have it. Controls are no part of HTML or Markdown, and those of the direction
/// of writing would turn what stands behind them.
fn harmless(letter: char) -> char {
    match letter {
        '\n' | '\r' | '\t' => letter,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => char::REPLACEMENT_CHARACTER,
        letter if letter.is_control() => char::REPLACEMENT_CHARACTER,
        letter => letter,
    }
}

/// For what a page's script puts into it as text.
pub(super) fn text(text: &str) -> String {
    text.chars().map(harmless).collect()
}

/// For text and attribute values of HTML and SVG.
pub(super) fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars().map(harmless) {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(letter),
        }
    }
    out
}

/// As [`html`], with what stands between backticks as code.
pub(super) fn marked(text: &str) -> String {
    let plain = html(text);
    let mut parts: Vec<String> = plain.split('`').map(str::to_owned).collect();
    if parts.len().is_multiple_of(2) {
        return plain;
    }
    parts.iter_mut().skip(1).step_by(2).for_each(|code| *code = format!("<code>{code}</code>"));
    parts.concat()
}

/// For JSON within a `script` element: with no `<` there is neither an end of it nor a comment.
/// JSON has `<` only within strings, where the escape means the same.
pub(super) fn script(json: &str) -> String {
    json.replace('<', "\\u003c")
}

/// For a cell of a Markdown table or a line of its text.
pub fn markdown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars().map(harmless) {
        match letter {
            '\n' | '\r' | '\t' => out.push(' '),
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '|' | '*' | '`' | '[' | ']' | '\\' => out.extend(['\\', letter]),
            _ => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "<img src=x onerror=\"alert('1')\"> & </script><!-- | `a`\n[b](c)";

    #[test]
    fn nothing_hostile_is_left() {
        assert_eq!(
            html(HOSTILE),
            "&lt;img src=x onerror=&quot;alert(&#39;1&#39;)&quot;&gt; &amp; &lt;/script&gt;&lt;!-- | `a`\n[b](c)"
        );
        assert_eq!(
            markdown(HOSTILE),
            "&lt;img src=x onerror=\"alert('1')\"> &amp; &lt;/script>&lt;!-- \\| \\`a\\` \\[b\\](c)"
        );
        assert_eq!(marked("`<b>` and `c`, <d>"), "<code>&lt;b&gt;</code> and <code>c</code>, &lt;d&gt;");
        assert_eq!(marked("a ` alone"), "a ` alone");
        for escaped in [text, html, markdown, marked] {
            assert_eq!(escaped("a\u{1b}b\u{0}c\u{202e}d\u{2067}e"), "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}e");
        }
        let json = serde_json::to_string(HOSTILE).unwrap_or_default();
        assert!(!script(&json).contains('<'));
        assert_eq!(serde_json::from_str::<String>(&script(&json)).ok().as_deref(), Some(HOSTILE));
    }
}
