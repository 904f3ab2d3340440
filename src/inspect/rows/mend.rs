//! The beginning of a JSON text as JSON: what a page can show of a row that is too long for it.

/// What stands where a text was cut.
const CUT: char = '…';

/// Closes what is open at the end of the beginning of a JSON text, so that it can be read. A string is cut, with `…` at its
/// end; a number, a name or anything else that is not complete goes. Of a text that is no JSON comes what is no JSON.
pub fn mend(beginning: &str) -> String {
    let bytes = beginning.as_bytes();
    // The brackets that are open, and the end of the last value or opening bracket with how many were open there.
    let (mut open, mut sound): (Vec<u8>, (usize, usize)) = (Vec::new(), (0, 0));
    // Where a string began; whether it is a name; where an escape in it began.
    let (mut string, mut is_name, mut escape): (Option<usize>, bool, Option<usize>) = (None, false, None);
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        if string.is_some() {
            match byte {
                b'\\' => {
                    let length = if bytes.get(at + 1) == Some(&b'u') { escaped(&bytes[at..]) } else { 2 };
                    if at + length > bytes.len() {
                        escape = Some(at);
                        break;
                    }
                    at += length - 1;
                }
                b'"' => {
                    string = None;
                    if !is_name {
                        sound = (at + 1, open.len());
                    }
                }
                _ => {}
            }
            at += 1;
            continue;
        }
        match byte {
            b'"' => {
                string = Some(at);
                // After `{` and after `,` in an object comes a name.
                let before = bytes[..at].iter().rev().find(|byte| !byte.is_ascii_whitespace());
                is_name = open.last() == Some(&b'{') && matches!(before, Some(b'{' | b','));
            }
            b'{' | b'[' => {
                open.push(*byte);
                sound = (at + 1, open.len());
            }
            b'}' | b']' => {
                open.pop();
                sound = (at + 1, open.len());
            }
            // The end of a number or a word before it.
            b',' => sound = (at, open.len()),
            _ => {}
        }
        at += 1;
    }
    let mut mended = if string.is_some() && !is_name {
        let end = escape.unwrap_or(bytes.len());
        let mut text = beginning[..end].to_owned();
        text.push(CUT);
        text.push('"');
        text
    } else {
        open.truncate(sound.1);
        beginning[..sound.0].to_owned()
    };
    mended.extend(open.iter().rev().map(|bracket| if *bracket == b'{' { '}' } else { ']' }));
    mended
}

/// Bytes of an escaped letter that begins with `\u`: of two of them where they make one letter.
fn escaped(bytes: &[u8]) -> usize {
    let is_first_half = bytes.get(2).is_some_and(|byte| byte.eq_ignore_ascii_case(&b'd'))
        && bytes.get(3).is_some_and(|byte| b"89abAB".contains(byte));
    if is_first_half { 12 } else { 6 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn every_beginning_of_an_object_is_one() {
        let text = r#" {"id" : "a\"\\ü\ud83d\ude00", "n": -1.5e3, "t":true,"list":[1, {"x":[[],{}], "y":null}, "z"], "e":{}, "text":"long"} "#;
        let whole: Value = serde_json::from_str(text).unwrap();
        for end in (2..text.len()).filter(|end| text.is_char_boundary(*end)) {
            let mended = mend(&text[..end]);
            let value: Value = serde_json::from_str(&mended).unwrap_or_else(|error| panic!("{mended}: {error}"));
            for (name, own) in value.as_object().unwrap() {
                assert!(whole.get(name).is_some_and(|whole| is_beginning(own, whole)), "{mended}");
            }
        }
        assert_eq!(mend(text.trim()), text.trim());
        assert_eq!(mend("plain"), "");
    }

    fn is_beginning(own: &Value, whole: &Value) -> bool {
        match (own, whole) {
            (Value::String(own), Value::String(whole)) => own == whole || whole.starts_with(own.trim_end_matches(CUT)),
            (Value::Array(own), Value::Array(whole)) => {
                own.iter().zip(whole).all(|(own, whole)| is_beginning(own, whole))
            }
            (Value::Object(own), Value::Object(whole)) => {
                own.iter().all(|(name, own)| whole.get(name).is_some_and(|whole| is_beginning(own, whole)))
            }
            _ => own == whole,
        }
    }
}
