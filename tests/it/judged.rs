//! Win rates of the paper's dialogue runs, from the verdicts that its authors' judge gave.

use serde_json::{Map, Value, json};

use super::real::test_data;
use super::sandbox::Sandbox;

/// Iteration, against whom, which queries; raw and length-balanced rate in percent with ties as half a win, and the
/// length-controlled rate of the paper's tables 2 and 3.
const PUBLISHED: &[(u32, &str, &str, f64, f64, f64)] = &[
    (1, "base", "helpful", 67.0, 63.8, 54.15),
    (2, "base", "helpful", 84.4, 75.3, 70.35),
    (3, "base", "helpful", 80.6, 66.9, 67.51),
    (1, "base", "harmless", 62.2, 62.0, 46.74),
    (2, "base", "harmless", 81.0, 68.2, 61.05),
    (3, "base", "harmless", 90.4, 77.8, 74.75),
    (0, "instruct", "helpful", 20.8, 34.0, 23.1),
    (1, "instruct", "helpful", 27.8, 44.5, 40.3),
    (2, "instruct", "helpful", 58.4, 57.6, 46.9),
    (3, "instruct", "helpful", 59.2, 55.0, 54.1),
    (0, "instruct", "harmless", 12.8, 24.3, 22.8),
    (1, "instruct", "harmless", 17.6, 34.7, 32.0),
    (2, "instruct", "harmless", 53.4, 51.4, 49.4),
    (3, "instruct", "harmless", 62.0, 57.9, 57.8),
];

/// Ends of the intervals that table 2 prints for the length-controlled rates against the base model.
const INTERVALS: &[(u32, &str, f64, f64)] = &[
    (1, "helpful", 48.0, 60.3),
    (2, "helpful", 64.7, 76.0),
    (3, "helpful", 61.7, 73.3),
    (1, "harmless", 40.6, 52.9),
    (2, "harmless", 55.0, 67.1),
    (3, "harmless", 69.4, 80.1),
];

const PIPELINE: &str = r#"
[datasets.judged]
source = "DATA"
candidate = "{{ comparison }}"

[nodes.half]
kind = "tally"
verdicts = "judged"
paired = [["3-vs-base-epoch-0.38-helpful", "1-vs-base-epoch-0.12-helpful"]]

[nodes.loss]
kind = "tally"
verdicts = "judged"
ties = "loss"
"#;

/// The name of a comparison in the authors' file.
fn comparison(iteration: u32, against: &str, queries: &str) -> String {
    let checkpoint = ["", "-epoch-0.12", "-epoch-0.25", "-epoch-0.38"][iteration as usize];
    format!("{iteration}-vs-{against}{checkpoint}-{queries}")
}

#[test]
fn the_papers_win_rates_come_back() {
    let Some(judged) = test_data("judged/hh_gpt4_pairwise.jsonl") else { return };
    let sandbox = Sandbox::with(&PIPELINE.replace("DATA", judged.to_str().expect("a path in UTF-8")));
    let done = sandbox.sami(&["run", "p.toml", "--json"]).exits(0).json();
    let metrics = |name: &str| {
        let nodes = done["nodes"].as_array().expect("a list");
        nodes.iter().find(|node| node["name"] == name).expect("a node")["metrics"].clone()
    };
    let (half, loss) = (metrics("half"), metrics("loss"));
    assert_eq!((&half["candidates"], &half["rows"]), (&24.into(), &6000.into()));
    let percent = |metrics: &Value, figure: &str, name: &str| {
        100.0 * metrics[format!("{figure}.{name}")].as_f64().unwrap_or_else(|| panic!("no {figure} of {name}"))
    };
    let mut table = "it against   queries     raw published  balanced published  controlled published\n".to_owned();
    let mut worst = [0.0f64; 3];
    for (iteration, against, queries, raw, balanced, controlled) in PUBLISHED {
        let name = comparison(*iteration, against, queries);
        let found = [
            percent(&half, "win_rate", &name),
            percent(&half, "win_rate_balanced", &name),
            percent(&loss, "win_rate_controlled", &name),
        ];
        for ((worst, found), published) in worst.iter_mut().zip(found).zip([raw, balanced, controlled]) {
            *worst = worst.max((found - published).abs());
        }
        let [own_raw, own_balanced, own_controlled] = found;
        table += &format!(
            "{iteration:<2} {against:<8}  {queries:<8}  {own_raw:5.1} {raw:9.1}  {own_balanced:8.1} {balanced:9.1}  {own_controlled:10.2} {controlled:9.2}\n"
        );
    }
    // What is printed to one place may be off by half of it.
    assert!(worst.iter().all(|worst| *worst <= 0.1), "{table}{worst:?}");
    print(&table);

    let report = sandbox.sami(&["cache", "cat", "loss", "breakdown.json"]).exits(0).stdout;
    let report: Value = serde_json::from_str(&report).expect("JSON");
    for (iteration, queries, low, high) in INTERVALS {
        let found = &report["candidates"][comparison(*iteration, "base", queries)]["controlled"]["wald"];
        let ends = [0, 1].map(|end| 100.0 * found[end].as_f64().expect("an end"));
        assert!((ends[0] - low).abs() < 0.11 && (ends[1] - high).abs() < 0.11, "{iteration} {queries}: {ends:?}");
    }
    for (name, wins) in [("3-vs-base-epoch-0.38-helpful", &half), ("2-vs-instruct-epoch-0.25-harmless", &half)] {
        for figure in ["win_rate", "win_rate_bootstrap", "win_rate_balanced", "win_rate_controlled"] {
            let (low, high) =
                (percent(wins, &format!("{figure}_low"), name), percent(wins, &format!("{figure}_high"), name));
            let rate = percent(wins, figure.trim_end_matches("_bootstrap"), name);
            assert!(low < rate && rate < high && high - low < 25.0, "{figure} of {name}: {low} {rate} {high}");
        }
    }
    let pair = "3-vs-base-epoch-0.38-helpful.1-vs-base-epoch-0.12-helpful";
    assert!(
        (percent(&half, "paired", pair) - 13.6).abs() < 1e-9 && half[format!("paired_p.{pair}")].as_f64() < Some(0.01)
    );
    assert!(percent(&half, "paired_low", pair) > 0.0);
}

/// Past the test harness's capture: a table that is worth a look.
fn print(table: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), table.as_bytes());
}

const RESPONSES: &str = r#"
[models.small]
source = "DATA/models/stories260K"

[datasets.posts]
source = "DATA/queries/tldr_posts_250.jsonl"
[datasets.base]
source = "DATA/responses/tldr/base-mistral-opus-constitution.jsonl"
[datasets.sami]
source = "DATA/responses/tldr/iteration-3-epoch-0.38-from-epoch-0.25-mistral-opus-constitution.jsonl"
[datasets.both]
source = "both.jsonl"
[datasets.pairs]
source = "pairs.json"

[nodes.constitutions]
kind = "constitutions"
principles = { file = "DATA/constitutions/sami_tldr_opus.json" }

[nodes.evaluate]
kind = "evaluate"
candidates = { base = "base", sami = "sami" }
against = "base"
queries = "posts"
constitutions = "constitutions"
prompt = "{{ post }}"
[nodes.evaluate.rules.principles]
concise = { definition = { max_words = 60 }, antithesis = { min_words = 61 } }
comprehensive = { definition = { min_sentences = 2 }, antithesis = { max_sentences = 1 } }

[nodes.score]
kind = "score"
model = "small"
responses = "both"
prompt = "{{ constitution }}\n\nSummary:"
too_long = "cut"

[nodes.score_pairs]
kind = "score"
model = "small"
responses = "pairs"
prompt = "{{ constitution }}"
too_long = "cut"
"#;

#[test]
fn the_authors_responses_are_compared_and_scored() {
    let Some(data) = test_data("") else { return };
    let rows = |name: &str| -> Vec<Value> {
        let text = fs_err::read_to_string(data.join(name)).expect("it is there");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let sandbox = Sandbox::with(&RESPONSES.replace("DATA", data.to_str().expect("a path in UTF-8")));
    // Two writers' constitutions, each with what was answered to it; and training pairs in the authors' own form.
    let writers =
        ["mistral", "opus"].map(|writer| rows(&format!("responses/tldr/base-mixtral-{writer}-constitution.jsonl")));
    let both = writers[0].iter().zip(&writers[1]).take(12).map(|(one, other)| {
        json!({"id": one["id"], "constitutions": [one["constitution"], other["constitution"]],
            "responses": [one["response"], other["response"]]})
    });
    sandbox.write("both.jsonl", &both.map(|row| row.to_string() + "\n").collect::<String>());
    // Those that fit the small model's positions.
    let short = |row: &Value| row["items"].to_string().len() < 2_200;
    let pairs = rows("queries/sami_hh_train_iter1_helpful.jsonl").into_iter().filter(short).take(12);
    let pairs: Map<String, Value> = pairs.map(|row| (row["id"].to_string(), row["items"].clone())).collect();
    sandbox.write("pairs.json", &json!(pairs).to_string());

    let done = sandbox.sami(&["run", "p.toml", "--json"]).exits(0).json();
    let metrics = |name: &str| {
        let nodes = done["nodes"].as_array().expect("a list");
        nodes.iter().find(|node| node["name"] == name).expect("a node")["metrics"].clone()
    };
    for name in ["score", "score_pairs"] {
        let found = metrics(name);
        let figure = |figure: &str| found[figure].as_f64().unwrap_or_else(|| panic!("no {figure} in {found}"));
        assert_eq!(found["rows"], 12);
        assert!((figure("bound_ceiling") - 2f64.ln()).abs() < 1e-12 && figure("bound") <= figure("bound_ceiling"));
        assert!(figure("bound") > -10.0 && figure("gap").is_finite() && figure("mean_length") > 10.0, "{found}");
    }
    let found = metrics("evaluate");
    let figure = |figure: &str| found[figure].as_f64().unwrap_or_else(|| panic!("no {figure} in {found}"));
    // Their third iteration writes much shorter summaries than the base model.
    assert!(figure("mean_characters.sami") < 0.7 * figure("mean_characters.base"), "{found}");
    assert!(figure("adherence.sami") > figure("adherence.base") && figure("win_rate_low") > 0.5, "{found}");
}
