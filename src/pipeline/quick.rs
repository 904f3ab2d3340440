//! A reader of the TOML that most large pipelines are written in: tables under headers, keys without dots, values on a
//! line, arrays over several. It makes a [`Tree`] in one pass and gives up at anything else; then the `toml` crate reads the
//! text, and says what is wrong with it if anything is. What both read they read alike, to the last span.

use std::ops::Range;

use super::tree::{Entry, Table, Tree, TreeValue};

/// Tables and arrays in one another.
const DEEPEST: usize = 16;

/// A key and where it stands.
type Key<'a> = (&'a str, Range<usize>);

/// Reads a text, if it is plain enough.
pub(super) fn parse(text: &str) -> Option<Tree> {
    let mut reader = Reader { text, bytes: text.as_bytes(), at: 0 };
    let mut root = Table::default();
    reader.pairs(&mut root)?;
    let mut path = Vec::new();
    while reader.at < reader.bytes.len() {
        let header = reader.header(&mut path)?;
        let table = reader.place(&mut root, &path, header)?;
        reader.pairs(table)?;
    }
    Some(Tree { span: 0..0, value: TreeValue::Table(root) })
}

struct Reader<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn next(&self) -> u8 {
        // No byte of what is looked for is 0, and a 0 in the text is none of them either.
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.next() == byte).then(|| self.at += 1)
    }

    fn blanks(&mut self) {
        while matches!(self.next(), b' ' | b'\t') {
            self.at += 1;
        }
    }

    /// Blanks, comments and ends of lines.
    fn lines(&mut self) -> Option<()> {
        loop {
            self.blanks();
            match self.next() {
                b'\n' => self.at += 1,
                b'#' => self.comment()?,
                _ => return Some(()),
            }
        }
    }

    fn comment(&mut self) -> Option<()> {
        while self.at < self.bytes.len() && self.next() != b'\n' {
            if is_control(self.next()) {
                return None;
            }
            self.at += 1;
        }
        Some(())
    }

    /// The rest of a line on which there is nothing more.
    fn end_of_line(&mut self) -> Option<()> {
        self.blanks();
        if self.next() == b'#' {
            self.comment()?;
        }
        if self.at == self.bytes.len() { Some(()) } else { self.take(b'\n') }
    }

    /// Keys and values up to the next header.
    fn pairs(&mut self, table: &mut Table) -> Option<()> {
        loop {
            self.lines()?;
            if self.at == self.bytes.len() || self.next() == b'[' {
                return Some(());
            }
            self.pair(table, 0)?;
            self.end_of_line()?;
        }
    }

    fn pair(&mut self, table: &mut Table, depth: usize) -> Option<()> {
        let (key, key_span) = self.key()?;
        self.blanks();
        self.take(b'=')?;
        self.blanks();
        let value = self.value(depth)?;
        table.add(key, Entry { key_span, value }).map(drop)
    }

    /// A key, and where it stands with its quotes.
    fn key(&mut self) -> Option<(&'a str, Range<usize>)> {
        let start = self.at;
        let quote = self.next();
        if matches!(quote, b'"' | b'\'') {
            let text = self.plain_string(quote)?;
            return Some((text, start..self.at));
        }
        while self.next().is_ascii_alphanumeric() || matches!(self.next(), b'_' | b'-') {
            self.at += 1;
        }
        (self.at > start).then(|| (&self.text[start..self.at], start..self.at))
    }

    /// `[a.b]`: its keys, and where all of it stands.
    fn header(&mut self, path: &mut Vec<Key<'a>>) -> Option<Range<usize>> {
        let start = self.at;
        self.take(b'[')?;
        path.clear();
        loop {
            self.blanks();
            path.push(self.key()?);
            self.blanks();
            if path.len() > DEEPEST {
                return None;
            }
            if self.take(b'.').is_none() {
                self.take(b']')?;
                let span = start..self.at;
                self.end_of_line()?;
                return Some(span);
            }
        }
    }

    /// The new table of a header.
    fn place<'t>(&self, root: &'t mut Table, path: &[Key<'a>], header: Range<usize>) -> Option<&'t mut Table> {
        let last = path.len() - 1;
        let mut table = root;
        for (depth, (key, span)) in path.iter().enumerate() {
            let new = |span: Range<usize>, header| Entry {
                key_span: span,
                value: Tree { span: header, value: TreeValue::Table(Table::with_capacity(4)) },
            };
            // Ten thousand headers begin alike.
            let known = if depth < last { table.place_of(key) } else { None };
            let place = match known {
                Some(known) => known,
                // One that was there before its header, or is there twice, cannot be added.
                None => table.add(key, new(span.clone(), if depth == last { header.clone() } else { span.clone() }))?,
            };
            let entry = table.at_mut(place);
            // A table between braces is closed.
            if self.bytes[entry.value.span.start] == b'{' {
                return None;
            }
            table = entry.value.table_mut()?;
        }
        Some(table)
    }

    fn value(&mut self, depth: usize) -> Option<Tree> {
        let start = self.at;
        let value = match self.next() {
            b'"' => TreeValue::String(self.string()?),
            b'\'' => TreeValue::String(self.plain_string(b'\'')?.to_owned()),
            b'[' | b'{' if depth == DEEPEST => return None,
            b'[' => TreeValue::Array(self.array(depth + 1)?),
            b'{' => TreeValue::Table(self.inline_table(depth + 1)?),
            _ => self.word()?,
        };
        Some(Tree { span: start..self.at, value })
    }

    fn array(&mut self, depth: usize) -> Option<Vec<Tree>> {
        self.take(b'[')?;
        let mut items = Vec::with_capacity(2);
        loop {
            self.lines()?;
            if self.take(b']').is_some() {
                return Some(items);
            }
            items.push(self.value(depth)?);
            self.lines()?;
            if self.take(b',').is_none() {
                self.take(b']')?;
                return Some(items);
            }
        }
    }

    fn inline_table(&mut self, depth: usize) -> Option<Table> {
        self.take(b'{')?;
        self.blanks();
        if self.take(b'}').is_some() {
            return Some(Table::default());
        }
        // Most have one or two; room for more would be most of what a large pipeline holds.
        let mut table = Table::with_capacity(1);
        loop {
            self.blanks();
            self.pair(&mut table, depth)?;
            self.blanks();
            if self.take(b',').is_none() {
                self.take(b'}')?;
                return Some(table);
            }
        }
    }

    /// A text between quotes without a backslash.
    fn plain_string(&mut self, quote: u8) -> Option<&'a str> {
        let start = self.at + 1;
        let length = self.bytes[start..].iter().position(|&byte| byte == quote || byte == b'\\' || is_control(byte))?;
        let end = start + length;
        // In a literal string a backslash is one; the `toml` crate knows. So it does of three quotes.
        if self.bytes[end] != quote || (length == 0 && self.bytes.get(end + 1) == Some(&quote)) {
            return None;
        }
        self.at = end + 1;
        Some(&self.text[start..end])
    }

    /// A text between double quotes with the usual escapes.
    fn string(&mut self) -> Option<String> {
        if let Some(plain) = self.plain_string(b'"') {
            return Some(plain.to_owned());
        }
        if self.bytes[self.at..].starts_with(b"\"\"\"") {
            return None;
        }
        self.at += 1;
        let mut text = String::new();
        loop {
            let rest = &self.bytes[self.at..];
            let length = rest.iter().position(|&byte| byte == b'"' || byte == b'\\' || is_control(byte))?;
            text.push_str(&self.text[self.at..self.at + length]);
            self.at += length + 1;
            match rest[length] {
                b'"' => return Some(text),
                b'\\' => text.push(match self.next() {
                    letter @ (b'"' | b'\\') => char::from(letter),
                    b'n' => '\n',
                    b't' => '\t',
                    b'r' => '\r',
                    _ => return None,
                }),
                _ => return None,
            }
            self.at += 1;
        }
    }

    /// A number or a truth.
    fn word(&mut self) -> Option<TreeValue> {
        let start = self.at;
        while self.next().is_ascii_alphanumeric() || matches!(self.next(), b'+' | b'-' | b'.') {
            self.at += 1;
        }
        let word = &self.text[start..self.at];
        match word {
            "true" => return Some(TreeValue::Boolean(true)),
            "false" => return Some(TreeValue::Boolean(false)),
            _ => {}
        }
        let digits = word.strip_prefix(['+', '-']).unwrap_or(word);
        let whole = digits.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(digits.len());
        // Neither `007` nor `.5`.
        if whole == 0 || (whole > 1 && digits.starts_with('0')) {
            return None;
        }
        let mut rest = &digits[whole..];
        if rest.is_empty() {
            return word.parse().ok().map(TreeValue::Integer);
        }
        let count = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        if let Some(fraction) = rest.strip_prefix('.') {
            rest = &fraction[Some(count(fraction)).filter(|&digits| digits > 0)?..];
        }
        if let Some(exponent) = rest.strip_prefix(['e', 'E']) {
            let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            rest = &exponent[Some(count(exponent)).filter(|&digits| digits > 0)?..];
        }
        let number: f64 = word.parse().ok().filter(|_| rest.is_empty())?;
        number.is_finite().then_some(TreeValue::Float(number))
    }
}

/// A character that stands in no text as it is; a tab may.
fn is_control(byte: u8) -> bool {
    (byte < 0x20 && byte != b'\t') || byte == 0x7f
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use proptest::strategy::ValueTree as _;

    use super::super::document;
    use super::*;
    use crate::diag::Source;

    /// Whether the text is plain; if it is, it was read as the `toml` crate reads it.
    fn alike(text: &str) -> bool {
        let Some(quick) = parse(text) else { return false };
        let thorough = document::parse_thoroughly(&Arc::new(Source::new("x.toml", text)));
        // Equal tables may differ in their order.
        assert_eq!(format!("{quick:?}"), format!("{:?}", thorough.expect("it is TOML")), "{text}");
        true
    }

    #[test]
    fn what_is_plain_is_read_as_the_crate_reads_it() {
        for plain in [
            "",
            "\n# c\n a = 1\n\tb= \"x\" # c",
            "a = [1, 2.5, [true, false,], # c\n \"x\\n\\\"\\\\\", 'y', {b = 1, \"c d\" = {}}\n]\n",
            "a = -0\nb = +7\nc = 1e5\nd = -2.5E-3\ne = 0.0\nf = 9223372036854775807",
            "[a.b]\nx = 1\n[ c . d ]\n[a.\"e f\"]\n'y' = ''\n[a.b.g]\n\n[c.e]\n",
            "[a]\nx = 1\n[b]\n[a.c]\nx = 2\n",
            "a = \"日本\" # ö\n[ö]",
        ] {
            assert_eq!(alike(plain), !plain.contains("[ö]"), "{plain}");
        }
        for odd in [
            "a.b = 1",
            "a = 1\na = 2",
            "[a]\n[a]",
            "[a.b]\n[a]",
            "[[a]]",
            "a = {}\n[a.b]",
            "a = 1\n[a.b]",
            "a = 007",
            "a = 1_0",
            "a = 0x1",
            "a = nan",
            "a = 1979-05-27",
            "a = \"\"\"x\"\"\"",
            "a = '''x'''",
            "a = \"\\u00e4\"",
            "a = {b = 1,}",
            "a = {b = 1,\nc = 2}",
            "a = {b = 1, b = 2}",
            "a",
            "a =",
            "= 1",
            "a = 1 b = 2",
            "a = 1\r\n",
            "a = \"x",
            "a = 'x\\y'",
            "# \u{1}",
            "a = \"\u{7f}\"",
            "a = .5",
            "a = 5.",
            "a = 1e",
            "a = 1e999",
            "a = 9223372036854775808",
            "a = --1",
            "a = [1 2]",
            "a = [1,,2]",
            "\u{feff}a = 1",
            "a = true1",
            "[a",
            "[]",
        ] {
            assert!(!alike(odd), "{odd}");
        }
        let deep = |depth| format!("a = {}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(alike(&deep(DEEPEST)) && !alike(&deep(DEEPEST + 1)));
    }

    #[test]
    fn so_are_pipelines_and_what_is_left_of_them_after_an_accident() {
        const PIECES: &[&str] =
            &["[", "]", "{", "}", "\"", "'", "\\", ".", "=", ",", "#", "\n", " ", "1", "-", "e", "[a.b]\n", "a = 1\n"];
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
        let mut texts = vec!["[a.b]\nx = [1, {y = 'z'}]\n[a.c]\nw = \"v\\n\" # u\nt = 1.5\n".to_owned()];
        for path in crate::fs::list(&folder).expect("lists") {
            if path.extension().is_some_and(|extension| extension == "toml") {
                texts.push(fs_err::read_to_string(path).expect("reads"));
            }
        }
        let mut plain = 0;
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let change = (any::<prop::sample::Index>(), 0..6usize, 0..PIECES.len());
        let changes = (0..texts.len(), proptest::collection::vec(change, 0..3));
        for _ in 0..3000 {
            let (at, changes) = changes.new_tree(&mut runner).expect("a value").current();
            let mut bytes = texts[at].clone().into_bytes();
            for (place, length, piece) in changes {
                let place = place.index(bytes.len());
                let end = bytes.len().min(place + length);
                bytes.splice(place..end, PIECES[piece].bytes());
            }
            plain += usize::from(String::from_utf8(bytes).is_ok_and(|text| alike(&text)));
        }
        assert!(plain > 100, "{plain} of them were plain");
    }
}
