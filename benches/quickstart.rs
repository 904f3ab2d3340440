//! The quickstart's figures over seeds, and the picture of what happens without the KL term.
//!
//! `cargo bench --bench quickstart -- [SEED…]` (default 1 2 3) runs `pipelines/quickstart.toml` from an empty cache with
//! each seed and prints what its last evaluation says of the base model and of the aligned one, the seconds of the run
//! and of a second one. `cargo bench --bench quickstart -- baselines [SEED…]` (default 1 2 3 4 5) trains SFT and DPO beside
//! SAMI, on the same responses, and prints how they do. `cargo bench --bench quickstart -- collapse` runs eight iterations with and without the KL term
//! and writes `docs/images/collapse.svg`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Runs the quickstart; returns the last line of `--json` and the wall seconds.
fn run(cache: &Path, sets: &[String]) -> std::io::Result<(Value, f64)> {
    run_file(Path::new("pipelines/quickstart.toml"), cache, sets)
}

/// Runs a pipeline; returns the same.
fn run_file(pipeline: &Path, cache: &Path, sets: &[String]) -> std::io::Result<(Value, f64)> {
    let start = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sami"));
    command.current_dir(ROOT).arg("run").arg(pipeline).args(["--json", "--cache"]).arg(cache);
    for set in sets {
        command.args(["--set", set]);
    }
    let output = command.stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let done = serde_json::from_str(text.lines().last().unwrap_or_default())?;
    Ok((done, start.elapsed().as_secs_f64()))
}

/// Metrics of the evaluations, iteration by iteration.
fn evaluations(done: &Value) -> Vec<&Value> {
    let nodes = done["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    nodes.iter().filter(|node| node["kind"] == "evaluate").map(|node| &node["metrics"]).collect()
}

fn number(metrics: &Value, name: &str) -> f64 {
    metrics[name].as_f64().unwrap_or(f64::NAN)
}

fn seeds(seeds: &[u64], out: &mut impl std::io::Write) -> std::io::Result<()> {
    writeln!(
        out,
        "| seed | bound, base → SAMI (×) | adherence | win rate [95%] | mean length | well formed | KL | first run, s | second run, s |\n|---|---|---|---|---|---|---|---|---|"
    )?;
    for seed in seeds {
        let cache = tempfile::tempdir()?;
        let sets = [format!("seed={seed}")];
        let (done, first) = run(cache.path(), &sets)?;
        let (_, second) = run(cache.path(), &sets)?;
        let Some(last) = evaluations(&done).pop().cloned() else { continue };
        let pair = |name: &str| (number(&last, &format!("{name}.base")), number(&last, &format!("{name}.sami")));
        let (bound, adherence, length, form) =
            (pair("bound"), pair("adherence"), pair("mean_length"), pair("well_formed"));
        writeln!(
            out,
            "| {seed} | {:.3} → {:.3} ({:.1}) | {:.3} → {:.3} ({:+.1} points) | {:.3} [{:.3}, {:.3}] | {:.1} → {:.1} ({:+.0}%) | {:.3} → {:.3} ({:+.1} points) | {:.3} | {first:.0} | {second:.2} |",
            bound.0,
            bound.1,
            bound.1 / bound.0,
            adherence.0,
            adherence.1,
            100.0 * (adherence.1 - adherence.0),
            number(&last, "win_rate"),
            number(&last, "win_rate_low"),
            number(&last, "win_rate_high"),
            length.0,
            length.1,
            100.0 * (length.1 / length.0 - 1.0),
            form.0,
            form.1,
            100.0 * (form.1 - form.0),
            number(&last, "kl.sami"),
        )?;
    }
    Ok(())
}

/// What trains beside SAMI: each goes on from its own iteration before, on the responses that SAMI trains on, and everything
/// but the objective is as SAMI has it.
const BASELINES: &str = r#"
[loop.nodes.sft]
kind = "finetune"
objective = "sft"                         # every response under its own constitution
model = "sft_policy"
reference = "base"
examples = "score"
batch_queries = 32                        # responses: those of 16 queries
steps = "${steps}"
optimizer = { name = "adamw", lr = "${lr}" }
kl_weight = "${kl_weight}"
kl_budget = "${kl_budget}"
score_eos = true
seed = "${seed}"

[loop.nodes.dpo]
kind = "finetune"
objective = "dpo"
model = "dpo_policy"
reference = "base"
examples = "score"
batch_queries = 16
steps = "${steps}"
optimizer = { name = "adamw", lr = "${lr}" }
kl_weight = "${kl_weight}"
kl_budget = "${kl_budget}"
score_eos = true
seed = "${seed}"

"#;

/// The quickstart with the baselines, evaluated against the base model and against SAMI.
fn with_baselines() -> std::io::Result<String> {
    let text = fs_err::read_to_string(Path::new(ROOT).join("pipelines/quickstart.toml"))?;
    let replaced = |text: String, old: &str, new: &str| {
        if text.contains(old) { Ok(text.replace(old, new)) } else { Err(std::io::Error::other(format!("no `{old}`"))) }
    };
    let carry = "carry.policy = ";
    let carries = |name: &str| format!("carry.{name}_policy = {{ first = \"base\", next = \"{name}\" }}\n");
    let text = replaced(text, carry, &format!("{}{}{carry}", carries("sft"), carries("dpo")))?;
    let two = "base = \"base\", sami = \"finetune\" }";
    let text = replaced(text, two, "base = \"base\", sami = \"finetune\", sft = \"sft\", dpo = \"dpo\" }")?;
    let evaluate = text.find("[loop.nodes.evaluate]").ok_or_else(|| std::io::Error::other("no evaluation"))?;
    // Outside of the loop, so that only its last models are evaluated.
    let last = text[evaluate..].replace("[loop.nodes.evaluate", "[nodes.evaluate");
    let rivals = last.replace("[nodes.evaluate", "[nodes.rivals");
    let rivals = replaced(rivals, "against = \"base\"", "against = \"sami\"")?;
    Ok(format!("{}{BASELINES}{last}\n{rivals}", &text[..evaluate]))
}

fn baselines(seeds: &[u64], out: &mut impl std::io::Write) -> std::io::Result<()> {
    writeln!(
        out,
        "| seed | model | win rate against base [95%] | against SAMI [95%] | adherence | well formed | mean length | bound | KL |\n|---|---|---|---|---|---|---|---|---|"
    )?;
    let folder = tempfile::tempdir()?;
    let pipeline = folder.path().join("baselines.toml");
    fs_err::write(&pipeline, with_baselines()?)?;
    for seed in seeds {
        let cache = tempfile::tempdir()?;
        let (done, _) = run_file(&pipeline, cache.path(), &[format!("seed={seed}")])?;
        let nodes = done["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
        let of = |name: &str| nodes.iter().find(|node| node["name"] == name).map(|node| &node["metrics"]);
        let (Some(base), Some(rivals)) = (of("evaluate"), of("rivals")) else { continue };
        let rate = |metrics: &Value, name: &str| {
            let of = |figure: &str| 100.0 * number(metrics, &format!("{figure}.{name}"));
            format!("{:.1} [{:.1}, {:.1}]", of("win_rate"), of("win_rate_low"), of("win_rate_high"))
        };
        for name in ["base", "sami", "sft", "dpo"] {
            let of = |figure: &str| number(base, &format!("{figure}.{name}"));
            writeln!(
                out,
                "| {seed} | {name} | {} | {} | {:.3} | {:.3} | {:.1} | {:.3} | {} |",
                if name == "base" { "–".to_owned() } else { rate(base, name) },
                if name == "sami" { "–".to_owned() } else { rate(rivals, name) },
                of("adherence"),
                of("well_formed"),
                of("mean_length"),
                of("bound"),
                if name == "base" { "–".to_owned() } else { format!("{:.3}", of("kl")) },
            )?;
        }
        out.flush()?;
    }
    Ok(())
}

/// What is drawn of an iteration: its name in the metrics, its name in the picture, its colour and its dashes.
const CURVES: &[(&str, &str, &str, &str)] = &[
    ("bound.sami", "bound, share of its ceiling", "#0072b2", ""),
    ("adherence.sami", "adherence", "#009e73", "6 3"),
    ("well_formed.sami", "well formed", "#d55e00", "2 3"),
    ("win_rate", "win rate against base", "#444444", "9 3 2 3"),
];

/// A panel: the curves over the iterations, from the base model on.
fn panel(svg: &mut String, left: f64, title: &str, evaluations: &[&Value]) {
    let (top, width, height) = (56.0, 300.0, 200.0);
    let x = |iteration: usize| left + width * iteration as f64 / evaluations.len() as f64;
    let y = |share: f64| top + height * (1.0 - share.clamp(0.0, 1.0));
    let _ = writeln!(svg, r#"<text x="{left}" y="36" font-weight="bold">{title}</text>"#);
    for tick in 0..=4 {
        let share = f64::from(tick) / 4.0;
        let (at, end) = (y(share), left + width);
        let _ = writeln!(svg, r##"<line x1="{left}" y1="{at:.1}" x2="{end}" y2="{at:.1}" stroke="#ddd"/>"##);
        let _ = writeln!(svg, r#"<text x="{}" y="{:.1}" text-anchor="end">{share}</text>"#, left - 6.0, at + 4.0);
    }
    for iteration in 0..=evaluations.len() {
        let _ = writeln!(
            svg,
            r#"<text x="{:.1}" y="{}" text-anchor="middle">{iteration}</text>"#,
            x(iteration),
            top + height + 18.0
        );
    }
    for (name, _, colour, dashes) in CURVES {
        let ceiling = if name.starts_with("bound") { number(evaluations[0], "bound_ceiling") } else { 1.0 };
        let base = if *name == "win_rate" { 0.5 } else { number(evaluations[0], &name.replace("sami", "base")) };
        let values = std::iter::once(base).chain(evaluations.iter().map(|metrics| number(metrics, name)));
        let points: Vec<String> =
            values.enumerate().map(|(at, value)| format!("{:.1},{:.1}", x(at), y(value / ceiling))).collect();
        let _ = writeln!(
            svg,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>"#,
            points.join(" ")
        );
    }
}

fn collapse() -> std::io::Result<()> {
    let cache = tempfile::tempdir()?;
    let longer =
        |sets: [&str; 2]| ["iterations=8"].iter().chain(&sets).map(|set| (*set).to_owned()).collect::<Vec<_>>();
    let (free, _) = run(cache.path(), &longer(["kl_weight=0.0", "kl_budget=1000.0"]))?;
    let (held, _) = run(cache.path(), &longer(["kl_weight=0.6", "kl_budget=0.08"]))?;
    let mut svg = String::from(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 340" font-family="sans-serif" font-size="12" fill="#222">
<rect width="760" height="340" fill="#fff"/>
"##,
    );
    panel(&mut svg, 50.0, "without the KL term", &evaluations(&free));
    panel(&mut svg, 430.0, "with it, and a budget", &evaluations(&held));
    let _ = writeln!(svg, r#"<text x="200" y="292" text-anchor="middle">iteration (0: the base model)</text>"#);
    let _ = writeln!(svg, r#"<text x="580" y="292" text-anchor="middle">iteration (0: the base model)</text>"#);
    for (at, (_, label, colour, dashes)) in CURVES.iter().enumerate() {
        let left = [50.0, 270.0, 400.0, 545.0][at];
        let _ = writeln!(
            svg,
            r#"<line x1="{left}" y1="320" x2="{}" y2="320" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/><text x="{}" y="324">{label}</text>"#,
            left + 24.0,
            left + 30.0
        );
    }
    svg.push_str("</svg>\n");
    let images = Path::new(ROOT).join("docs/images");
    fs_err::create_dir_all(&images)?;
    fs_err::write(images.join("collapse.svg"), svg)
}

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "collapse") {
        return collapse();
    }
    let given: Vec<u64> = args.iter().filter_map(|arg| arg.parse().ok()).collect();
    let mut out = std::io::stdout();
    if args.iter().any(|arg| arg == "baselines") {
        return baselines(if given.is_empty() { &[1, 2, 3, 4, 5] } else { &given }, &mut out);
    }
    seeds(if given.is_empty() { &[1, 2, 3] } else { &given }, &mut out)?;
    out.flush()
}
