//! `sami cache rows`: what the row memo holds.

use serde_json::{Value, json};

use super::figures::{bytes, clock, count, cut, plain, plural, some};
use super::page::{LISTED, WIDTH};
use super::table::Table;
use super::{CommandResult, Context, DONE, RowsArgs, context};
use crate::diag::Diagnostic;
use crate::digest::Digest;
use crate::store::rows::{About, RowLimit, SpaceLine};
use crate::store::{Index, Store};

/// Widest list of fields in the table.
const FIELDS: usize = 48;

/// Lists spaces, shows the rows of one, or evicts.
pub(super) fn run(context: &Context, store: &Store, args: &RowsArgs) -> CommandResult {
    if args.evict {
        return evict(context, store, args);
    }
    match &args.space {
        Some(space) => rows(context, store, space, args),
        None => list(context, store),
    }
}

/// The space that an id or the beginning of one names.
fn named(lines: &[SpaceLine], what: &str) -> Result<Digest, Diagnostic> {
    let found: Vec<Digest> =
        lines.iter().map(|line| line.space).filter(|space| space.to_string().starts_with(what)).collect();
    match found.as_slice() {
        [one] => Ok(*one),
        [] => {
            let near: Vec<String> = lines.iter().map(|line| line.space.short()).collect();
            let known = if near.is_empty() { "there are none".to_owned() } else { some(&near, ", ", LISTED) };
            Err(Diagnostic::error("cli::no-such-space", format!("no space of the row memo begins with `{what}`"))
                .help(format!("`sami cache rows` lists them: {known}")))
        }
        several => {
            let ids: Vec<String> = several.iter().map(Digest::short).collect();
            Err(Diagnostic::error("cli::several-spaces", format!("`{what}` begins {} spaces", several.len()))
                .help(format!("give more of one: {}", some(&ids, ", ", LISTED))))
        }
    }
}

fn list(context: &Context, store: &Store) -> CommandResult {
    let lines = store.rows_list()?;
    let total: u64 = lines.iter().map(|line| line.bytes).sum();
    let limit = limit(None)?;
    if context.json() {
        let limit = (limit.0 < u64::MAX).then_some(limit.0);
        context::print_json(&json!({"bytes": total, "limit": limit, "spaces": lines}))?;
        return Ok(DONE);
    }
    if lines.is_empty() {
        context::print("no rows are remembered\n")?;
        return Ok(DONE);
    }
    let index = Index::open(store)?;
    let mut table = Table::new(
        ["space", "computes", "model", "class", "fields", "rows", "size", "reused", "last used", "by"],
        &[5, 6, 7],
    );
    for line in &lines {
        let about = line.about.as_ref();
        let paid = about.is_some_and(|about| about.paid);
        let of = |tell: fn(&About) -> String| about.map_or_else(|| "?".to_owned(), tell);
        let uses = &line.uses;
        table.row([
            line.space.short(),
            of(|about| about.what.clone()),
            about.map_or_else(|| "?".to_owned(), |about| models(&index, about)),
            if paid { "paid".to_owned() } else { of(|about| about.class.clone().unwrap_or_default()) },
            of(|about| cut(&fields(&about.fields), FIELDS)),
            count(line.rows),
            bytes(line.bytes),
            if uses.times > 0 { format!("{} of {}", count(uses.reused), count(uses.asked)) } else { String::new() },
            clock(&line.used.to_string()),
            uses.node.clone(),
        ]);
    }
    let room = if limit.0 < u64::MAX { format!(" of at most {}", bytes(limit.0)) } else { String::new() };
    let spaces = plural(lines.len() as u64, "space");
    context::print(&format!("{}{spaces}, {}{room}\n", table.text(), bytes(total)))?;
    Ok(DONE)
}

/// Who computes: the model's own name, or the node that made it, or its id.
fn models(index: &Index, about: &About) -> String {
    if let Some(name) = &about.model {
        return name.clone();
    }
    let name = |id: &Digest| match index.makers(id).first() {
        Some(maker) => maker.node.clone(),
        None => id.short(),
    };
    about.models.iter().map(name).collect::<Vec<_>>().join(" vs ")
}

/// `max_new_tokens 64, temperature 1.0`; fields that are off are left out.
fn fields(fields: &Value) -> String {
    let Value::Object(fields) = fields else { return String::new() };
    let is_on = |value: &Value| match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        _ => true,
    };
    let parts = fields.iter().filter(|(_, value)| is_on(value)).map(|(name, value)| format!("{name} {value}"));
    parts.collect::<Vec<_>>().join(", ")
}

fn rows(context: &Context, store: &Store, what: &str, args: &RowsArgs) -> CommandResult {
    let lines = store.rows_list()?;
    let space = named(&lines, what)?;
    let (rows, all) = store.rows_of(&space, args.last, args.grep.as_deref())?;
    let line = lines.into_iter().find(|line| line.space == space);
    if context.json() {
        context::print_json(&json!({"space": line, "rows": rows, "matching": all}))?;
        return Ok(DONE);
    }
    let mut text = String::new();
    if let Some(line) = &line {
        let about = line.about.as_ref();
        text.push_str(&format!("space     {space}\n"));
        match about {
            Some(about) => {
                let models: Vec<String> = about.models.iter().map(Digest::short).collect();
                let model = about.model.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
                let class = about.class.as_ref().map(|class| format!(", on {class}")).unwrap_or_default();
                text.push_str(&format!("computes  {} with {}{model}{class}\n", about.what, models.join(", ")));
                let fields = fields(&about.fields);
                if !fields.is_empty() {
                    text.push_str(&format!("fields    {}\n", cut(&plain(&fields), WIDTH)));
                }
            }
            None => text.push_str("computes  not known: its rows were kept by an older version\n"),
        }
        text.push_str(&format!("holds     {}, {}\n\n", plural(line.rows, "row"), bytes(line.bytes)));
    }
    for row in &rows {
        let asked = row.note.as_ref().map_or_else(|| row.key.short(), |note| cut(&plain(note), WIDTH));
        text.push_str(&format!("{asked}\n  = {}\n", cut(&plain(&result(&row.value)), WIDTH)));
    }
    let shown = rows.len() as u64;
    if shown < all {
        text.push_str(&format!("{} before these; `--last {all}` shows all\n", count(all - shown)));
    } else if all == 0 {
        text.push_str("no row holds that\n");
    }
    context::print(&text)?;
    Ok(DONE)
}

/// A result in a line: an answer as its text, with what else is known of it behind.
fn result(value: &Value) -> String {
    let answer = value.get("answer").unwrap_or(value);
    match answer.get("text").and_then(Value::as_str) {
        Some(text) => {
            let of = |name: &str| answer.get(name).map(ToString::to_string).unwrap_or_default();
            format!("{text:?} ({} tokens, {})", of("tokens"), of("finish").trim_matches('"'))
        }
        None => fields(value),
    }
}

fn limit(given: Option<&str>) -> Result<RowLimit, Diagnostic> {
    let (limit, from) = match given {
        Some(text) => (text.parse(), "--limit"),
        None => (RowLimit::from_environment(), crate::env::ROWS_LIMIT.name),
    };
    limit.map_err(|wrong| Diagnostic::error("cli::bad-size", format!("{from}: {wrong}")))
}

fn evict(context: &Context, store: &Store, args: &RowsArgs) -> CommandResult {
    let limit = limit(args.limit.as_deref())?;
    let lines = store.rows_list()?;
    let paid: Vec<Digest> = args.paid.iter().map(|what| named(&lines, what)).collect::<Result<_, _>>()?;
    let evicted = store.evict_rows(limit, &paid, args.dry_run)?;
    if context.json() {
        context::print_json(&json!({"dry_run": args.dry_run, "evicted": evicted}))?;
        return Ok(DONE);
    }
    let word = if args.dry_run { "would evict" } else { "evicted" };
    let mut text = format!("{word} {}, {} stay\n", bytes(evicted.bytes), bytes(evicted.left));
    if evicted.left > limit.0 && evicted.paid > 0 {
        text.push_str(&format!(
            "{} may have cost money and go only if they are named: `--paid SPACE`\n",
            bytes(evicted.paid)
        ));
    }
    context::print(&text)?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_and_fields_fit_a_line() {
        let answer = json!({"text": "a\nb", "tokens": 3, "finish": "eos"});
        assert_eq!(result(&answer), "\"a\\nb\" (3 tokens, eos)");
        assert_eq!(result(&json!({"answer": answer, "prompt_tokens": 9})), "\"a\\nb\" (3 tokens, eos)");
        assert_eq!(result(&json!({"nats": -1.5, "tokens": 2})), "nats -1.5, tokens 2");
        assert_eq!(fields(&json!({"stop": [], "top_p": 0.5, "seed": null})), "top_p 0.5");
        assert_eq!(fields(&Value::Null), "");
    }

    #[test]
    fn a_space_is_named_by_its_beginning() {
        let line = |space: Digest| SpaceLine {
            space,
            about: None,
            rows: 0,
            bytes: 0,
            segments: 0,
            uses: crate::store::rows::Uses::default(),
            used: jiff::Timestamp::UNIX_EPOCH,
        };
        let mut bytes = [7; 32];
        let one = Digest::from_bytes(bytes);
        bytes[31] = 8;
        let lines = [line(one), line(Digest::from_bytes(bytes))];
        assert_eq!(named(&lines, &one.to_string()).ok(), Some(one));
        assert!(named(&lines, "07").unwrap_err().title.contains("2 spaces"));
        assert!(named(&lines, "08").unwrap_err().title.contains("`08`"));
    }
}
