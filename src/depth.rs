//! How deep an expression of a template is. The template engine reads operators, filters and attributes by recursion: a
//! thousand bytes of `-` or `.a` would be as many calls, and the end of the stack is the end of the process.

/// Most parts of an expression that follow each other without a comma; prompts of people have a tenth of it.
const MOST: usize = 400;
/// Most `{% elif %}` of a template.
const MOST_BRANCHES: usize = 200;

/// Errs if an expression is too deep; says so as `it …`.
pub fn of_expression(text: &str) -> Result<(), String> {
    expression(text, "").map(drop)
}

/// Errs if an expression in a template is too deep; says so as `it …`.
pub fn of_template(text: &str) -> Result<(), String> {
    let (mut rest, mut branches) = (text, 0);
    while let Some(at) = rest.find('{') {
        rest = &rest[at + 1..];
        let end = match rest.as_bytes().first() {
            Some(b'{') => "}}",
            Some(b'%') => "%}",
            _ => continue,
        };
        rest = &rest[1..];
        branches += usize::from(rest.trim_start_matches(['-', '+', ' ', '\t', '\n', '\r']).starts_with("elif"));
        if branches > MOST_BRANCHES {
            return Err(format!("has more than {MOST_BRANCHES} `elif`"));
        }
        rest = &rest[expression(rest, end)?..];
    }
    Ok(())
}

/// Reads an expression up to `end`, which is not in a string, or to the end of the text; returns how many bytes it took.
fn expression(text: &str, end: &str) -> Result<usize, String> {
    // Parts until now, and how many there were where brackets were opened: after a comma it is as after the bracket.
    let (mut parts, mut open) = (0, Vec::new());
    let (bytes, mut at) = (text.as_bytes(), 0);
    while at < bytes.len() {
        if !end.is_empty() && bytes[at..].starts_with(end.as_bytes()) {
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
        let many = "{% if a %}{{ x.y|upper }}{% elif b %}{% endif %}".repeat(MOST_BRANCHES);
        assert_eq!(of_template(&many), Ok(()));
        assert!(of_template(&format!("{{% if a %}}{}", "{%- elif b %}".repeat(MOST_BRANCHES + 1))).is_err());
    }
}
