//! Words as shells take them, in scripts that are run and in commands that are shown.

/// A word for the shell, as it is.
pub fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./=:,@%+".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_they_were_after_the_shell() {
        for word in ["plain", "", "two words", "it's", "$HOME `x` \"y\" \\", "finetune@2[lr=1e-7]", "a\nb"] {
            let output = std::process::Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(word))).output();
            assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap(), word);
        }
    }

    #[test]
    fn only_what_needs_it_has_quotes() {
        assert_eq!(["a@2", "a[lr=1]", "it's", ""].map(quoted), ["a@2", "'a[lr=1]'", r"'it'\''s'", "''"]);
    }
}
