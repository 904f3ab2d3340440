//! How deep an expression of a template is. The template engine reads operators, filters and attributes by recursion: a
//! thousand bytes of `-` or `.a` would be as many calls, and the end of the stack is the end of the process.

use std::collections::BTreeSet;

use regex::Regex;

/// Most parts of an expression that follow each other without a comma; prompts of people have a tenth of it.
const MOST: usize = 400;
/// Most `{% elif %}` of a template.
const MOST_BRANCHES: usize = 200;
/// Most tags of a template that stand within each other.
const MOST_BLOCKS: usize = 50;

/// Tags that have an end; a `set` does where it has no `=`.
const OPENING: &[&str] = &["if", "for", "macro", "call", "filter", "with", "autoescape", "block", "generation"];

/// Errs if an expression is too deep; says so as `it …`.
pub fn of_expression(text: &str) -> Result<(), String> {
    expression(text, "").map(drop)
}

/// Errs if an expression in a template is too deep; says so as `it …`.
pub fn of_template(text: &str) -> Result<(), String> {
    let (mut rest, mut branches, mut open) = (text, 0, 0_usize);
    while let Some(at) = rest.find('{') {
        rest = &rest[at + 1..];
        let end = match rest.as_bytes().first() {
            Some(b'{') => "}}",
            Some(b'%') => "%}",
            // What stands in a comment is not read.
            Some(b'#') => {
                rest = rest[1..].split_once("#}").map_or("", |(_, rest)| rest);
                continue;
            }
            _ => continue,
        };
        rest = &rest[1..];
        if end == "%}"
            && let Some(raw) = after_tag(rest, "raw")
        {
            rest = after_raw(raw);
            continue;
        }
        if end == "%}" {
            let tag = rest.trim_start_matches(['-', '+']).trim_start();
            branches += usize::from(tag.starts_with("elif"));
            let is_long_set = || tag.starts_with("set") && !tag.split(end).next().is_some_and(|tag| tag.contains('='));
            if tag.starts_with("end") {
                open = open.saturating_sub(1);
            } else if OPENING.iter().any(|opening| tag.starts_with(opening)) || is_long_set() {
                open += 1;
            }
        }
        if open > MOST_BLOCKS {
            return Err(format!("has more than {MOST_BLOCKS} tags within each other"));
        }
        if branches > MOST_BRANCHES {
            return Err(format!("has more than {MOST_BRANCHES} `elif`"));
        }
        rest = &rest[expression(rest, end)?..];
    }
    Ok(())
}

/// What follows a tag of one word, if `text`, which is behind a `{%`, begins with the rest of one.
fn after_tag<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let rest = text.strip_prefix(['-', '+']).unwrap_or(text).trim_start().strip_prefix(word)?.trim_start();
    rest.strip_prefix(['-', '+']).unwrap_or(rest).strip_prefix("%}")
}

/// What follows the end of a raw part, of which nothing is read.
fn after_raw(mut raw: &str) -> &str {
    while let Some((_, next)) = raw.split_once("{%") {
        if let Some(rest) = after_tag(next, "endraw") {
            return rest;
        }
        raw = next;
    }
    ""
}

/// Whether a template keeps one namespace within another, as `{% set ns.x = ns %}` does: one that holds itself has no end
/// when it is shown. Names that stand for namespaces are followed through `set` and `for`.
pub fn nests_namespaces(text: &str) -> bool {
    let tag = Regex::new(r"(?s)\{%[-+]?\s*(?:set|for)\s+(\w+)(\.\w+)?\s*(?:=|in\b)(.*?)%\}").expect("a pattern");
    let word = Regex::new(r"\w+\.?").expect("a pattern");
    let mut known: BTreeSet<&str> = BTreeSet::from(["namespace"]);
    loop {
        let before = known.len();
        for found in tag.captures_iter(text) {
            let value = found.get(3).map_or("", |value| value.as_str());
            // `ns.x` is what is in it.
            let names_one = word.find_iter(value).any(|word| known.contains(word.as_str()));
            match (names_one, found.get(2), found.get(1)) {
                (true, Some(_), _) => return true,
                (true, None, Some(name)) => _ = known.insert(name.as_str()),
                _ => {}
            }
        }
        if known.len() == before {
            return false;
        }
    }
}

/// Reads an expression up to `end`, which is not in a string, or to the end of the text; returns how many bytes it took.
fn expression(text: &str, end: &str) -> Result<usize, String> {
    // Parts until now, and how many there were where brackets were opened: after a comma it is as after the bracket.
    let (mut parts, mut open) = (0, Vec::new());
    let (bytes, mut at) = (text.as_bytes(), 0);
    while at < bytes.len() {
        // As the engine has it: within brackets nothing ends.
        if !end.is_empty() && open.is_empty() && bytes[at..].starts_with(end.as_bytes()) {
            return Ok(at + end.len());
        }
        match bytes[at] {
            quote @ (b'"' | b'\'') => {
                parts += 1;
                at += 1;
                while at < bytes.len() && bytes[at] != quote {
                    at += 1 + usize::from(bytes[at] == b'\\');
                }
            }
            b'(' | b'[' | b'{' => {
                parts += 1;
                open.push(parts);
            }
            b')' | b']' | b'}' => parts = open.pop().unwrap_or(parts) + 1,
            b',' => parts = open.last().copied().unwrap_or(0),
            byte if byte.is_ascii_whitespace() => {}
            byte => {
                parts += 1;
                let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
                if word(byte) {
                    at += bytes[at + 1..].iter().take_while(|byte| word(**byte)).count();
                }
            }
        }
        at += 1;
        if parts > MOST {
            return Err(format!("has an expression of more than {MOST} parts in a row"));
        }
    }
    Ok(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_within_another_is_found() {
        for text in ["{% set ns.x = ns %}", "{%- set ns.x = [1, ns] -%}", "{% set a = ns %}{% set ns.x = a %}"] {
            assert!(nests_namespaces(&format!("{{% set ns = namespace(n=0) %}}{text}")), "{text}");
        }
        let plain =
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}";
        assert!(!nests_namespaces(plain));
    }

    #[test]
    fn what_is_deep_is_refused_and_what_is_long_is_not() {
        for part in ["-", "not ", "a.", "1+", "a|f|", "a~", "(", "f(-", "[1,-", "a if "] {
            let deep = part.repeat(1000);
            assert!(of_expression(&deep).is_err(), "{part}");
            assert!(of_template(&format!("text {{{{ {deep}")).is_err(), "{part}");
            assert!(of_template(&format!("text {{% if {deep} %}}")).is_err(), "{part}");
            assert_eq!(of_template(&format!("text {{# {deep} #}} {deep}")), Ok(()), "{part}");
        }
        let string = format!("'{}' ~ \"{}\"", "-".repeat(9000), "\\\"-".repeat(9000));
        let list = format!("[{}]", "-1, ".repeat(9000));
        for long in [&string, &list] {
            assert_eq!(of_expression(long), Ok(()));
            assert_eq!(of_template(&format!("{{{{ {long} }}}}").repeat(2)), Ok(()));
        }
        for (tag, fine) in [
            ("{% if a %}", false),
            ("{%- for x in y %}", false),
            ("{% if a %}{% endif %}", true),
            ("{% set a = b %}", true),
        ] {
            assert_eq!(of_template(&tag.repeat(MOST_BLOCKS + 1)).is_ok(), fine, "{tag}");
        }
        for hidden in ["{# {{ ' #}", "{% raw %}{{ ' {% endraw %}"] {
            assert!(of_template(&format!("{hidden}{{{{ {} }}}}", "-".repeat(1000))).is_err(), "{hidden}");
        }
        assert!(of_template(&format!("{{{{ {{'a': {{}}}}{} }}}}", ".a".repeat(1000))).is_err());
        let many = "{% if a %}{{ x.y|upper }}{% elif b %}{% endif %}".repeat(MOST_BRANCHES);
        assert_eq!(of_template(&many), Ok(()));
        assert!(of_template(&format!("{{% if a %}}{}", "{%- elif b %}".repeat(MOST_BRANCHES + 1))).is_err());
    }
}
