//! The language model against `PyTorch` with transformers, and llama.cpp: same weights, same work, same run.
//!
//! `cargo bench --bench lm -- [--rounds N] [--choose] [PART OF A CASE'S NAME…]` prints a table; without a name, all of it.
//!
//! Each side works in a process of its own on two threads in f32, gets the same file of tokens, does the work once to warm
//! up, and then by turns with the others. A cell is the median of the rounds; a ratio is theirs over ours, with the least
//! and the largest of the rounds. Peak memory is the largest resident set of that process, weights and libraries too.
//!
//! `PyTorch` runs with the settings that are fastest for it here (attention, batch, optimiser), searched for once and kept
//! in `target/bench-lm`; `--choose` searches again. `SAMI_BENCH_PYTHON` names a Python that has torch and transformers,
//! `SAMI_BENCH_LLAMA` one that has llama-cpp-python, gguf and numpy. Who is not there has an empty column, and the line
//! under the table says why.

mod cases;
mod ours;
mod side;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use sami::env::{BENCH_LLAMA, BENCH_PYTHON};
use serde_json::{Value, json};

use self::cases::{CASES, Case, M, S, Work};
use self::side::{Round, Side};

type Failure = Box<dyn std::error::Error>;

struct Bench {
    directory: PathBuf,
    rounds: usize,
    choose: bool,
    python: PathBuf,
    llama: Option<PathBuf>,
    /// Why somebody is not there, by who it is.
    missing: BTreeMap<&'static str, String>,
    versions: BTreeMap<&'static str, String>,
}

/// What one side did.
#[derive(Default)]
struct Measured {
    seconds: Vec<f64>,
    peak_kib: Option<u64>,
    results: Vec<Value>,
}

impl Measured {
    fn median(&self) -> Option<f64> {
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        Some((seconds.get((seconds.len().checked_sub(1)?) / 2)? + seconds.get(seconds.len() / 2)?) / 2.0)
    }
}

fn peer(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(name)
}

impl Bench {
    fn file(&self, name: &str, value: &Value) -> Result<PathBuf, Failure> {
        let path = self.directory.join(name);
        fs_err::write(&path, value.to_string())?;
        Ok(path)
    }

    fn torch(&self, work: &Path, settings: &Value) -> Result<Side, Failure> {
        let settings = self.file("settings.json", settings)?;
        Side::start(&self.python, &[&peer("torch_peer.py"), work, &settings])
    }

    /// The fastest settings for `PyTorch`: one setting after the other.
    fn fastest(&self, case: &Case, work: &Path) -> Result<Value, Failure> {
        let kept = self.directory.join("settings").join(format!("{}.json", case.name));
        if !self.choose
            && let Ok(text) = fs_err::read(&kept)
        {
            return Ok(serde_json::from_slice(&text)?);
        }
        let settings = case.settings();
        let mut best: Value = settings.iter().map(|(name, values)| (*name, values[0].clone())).collect::<Value>();
        let mut least = f64::INFINITY;
        let mut known = false;
        for (name, values) in settings {
            for value in values {
                let mut tried = best.clone();
                tried[name] = value;
                if known && tried == best {
                    continue;
                }
                known = true;
                let mut side = self.torch(work, &tried)?;
                let seconds = side.round()?.seconds;
                if seconds < least {
                    (least, best) = (seconds, tried);
                }
            }
        }
        fs_err::create_dir_all(kept.parent().unwrap_or(&self.directory))?;
        fs_err::write(kept, best.to_string())?;
        Ok(best)
    }

    /// Notes why a side is not there.
    fn there<T>(&mut self, who: &'static str, side: Result<T, Failure>) -> Option<T> {
        match side {
            Ok(side) => Some(side),
            Err(error) => {
                self.missing.insert(who, error.to_string().lines().last().unwrap_or_default().to_owned());
                None
            }
        }
    }

    /// Runs a case; returns each side's figures and `PyTorch`'s settings.
    fn run(&mut self, case: &Case) -> Result<([Measured; 3], Value), Failure> {
        let model = self.directory.join(case.shape.name);
        let work = self.file(&format!("{}.json", case.name), &case.work(&model))?;
        let mut settings = Value::Null;
        let alone = matches!(case.work, Work::Checkpointed { .. });
        let torch = if alone || self.missing.contains_key("PyTorch") {
            None
        } else {
            let side = self.fastest(case, &work).and_then(|fastest| {
                settings = fastest;
                self.torch(&work, &settings)
            });
            self.there("PyTorch", side)
        };
        let llama = match (&self.llama, case.work) {
            (Some(python), Work::Score { .. } | Work::Sample { .. }) if !self.missing.contains_key("llama.cpp") => {
                let side = Side::start(python, &[&peer("llama_peer.py"), &work]);
                self.there("llama.cpp", side)
            }
            _ => None,
        };
        let ours = Side::start(&std::env::current_exe()?, &[Path::new("--measure"), &work])?;
        let mut sides = [Some(ours), torch, llama];
        let mut measured: [Measured; 3] = Default::default();
        for (side, measured) in sides.iter_mut().zip(&mut measured) {
            if let Some(side) = side {
                measured.results.push(side.first.clone());
            }
        }
        for _ in 0..self.rounds {
            for (side, measured) in sides.iter_mut().zip(&mut measured) {
                if let Some(side) = side {
                    let Round { seconds, result } = side.round()?;
                    measured.seconds.push(seconds);
                    measured.results.push(result);
                }
            }
        }
        for ((side, measured), who) in sides.into_iter().zip(&mut measured).zip(["sami", "PyTorch", "llama.cpp"]) {
            if let Some(side) = side {
                self.versions.insert(who, side.version.clone());
                measured.peak_kib = side.end()?;
            }
        }
        Ok((measured, settings))
    }
}

/// How far two results are apart: relative, or the share of tokens that differ.
fn apart(ours: &[Value], theirs: &[Value]) -> Option<f64> {
    let both = ours.iter().zip(theirs);
    let of = |(a, b): (&Value, &Value)| match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => (a - b).abs() / b.abs().max(1e-9),
        _ => {
            let flat = |of: &Value| -> Vec<Value> {
                of.as_array()
                    .into_iter()
                    .flatten()
                    .flat_map(|row| row.as_array().cloned().unwrap_or_default())
                    .collect()
            };
            let (a, b) = (flat(a), flat(b));
            let differ = a.iter().zip(&b).filter(|(a, b)| a != b).count() + a.len().abs_diff(b.len());
            differ as f64 / a.len().max(1) as f64
        }
    };
    both.map(of).max_by(f64::total_cmp)
}

fn line(case: &Case, [ours, torch, llama]: &[Measured; 3], settings: &Value) -> String {
    let or_nothing = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    let seconds = |of: &Measured| or_nothing(of.median().map(|seconds| format!("{seconds:.3}")));
    let ratio = ours.median().zip(torch.median()).map(|(ours_median, theirs)| {
        let rounds = ours.seconds.iter().zip(&torch.seconds).map(|(ours, theirs)| theirs / ours);
        let (least, most) =
            rounds.fold((f64::INFINITY, 0f64), |(least, most), ratio| (least.min(ratio), most.max(ratio)));
        format!("{:.2} ({least:.2}–{most:.2})", theirs / ours_median)
    });
    let mib = |of: &Measured| or_nothing(of.peak_kib.map(|peak| format!("{:.0}", peak as f64 / 1024.0)));
    let share = ours.peak_kib.zip(torch.peak_kib).map(|(ours, theirs)| format!("{:.2}", ours as f64 / theirs as f64));
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        case.shape.name,
        case.title(),
        seconds(ours),
        seconds(torch),
        or_nothing(ratio),
        or_nothing(case.speed.map(|speed| format!("≥ {speed}"))),
        mib(ours),
        mib(torch),
        or_nothing(share),
        or_nothing(case.memory.map(|memory| format!("≤ {memory:.2}"))),
        seconds(llama),
        or_nothing(apart(&ours.results, &torch.results).map(|apart| format!("{apart:.0e}"))),
        settings.as_object().map_or_else(
            || "–".to_owned(),
            |settings| {
                let words = settings.iter().map(|(name, value)| match (name.as_str(), value.as_u64()) {
                    (_, Some(0)) => format!("all {name} at once"),
                    (_, Some(count)) => format!("{name} {count}"),
                    _ => value.as_str().unwrap_or_default().to_owned(),
                });
                words.collect::<Vec<_>>().join(", ")
            }
        ),
    )
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench").peekable();
    if arguments.next_if(|argument| argument == "--measure").is_some() {
        return ours::measure(Path::new(&arguments.next().unwrap_or_default()));
    }
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-lm");
    fs_err::create_dir_all(&directory)?;
    let mut bench = Bench {
        directory,
        rounds: 5,
        choose: false,
        python: BENCH_PYTHON.get().unwrap_or_else(|| "python3".to_owned()).into(),
        llama: BENCH_LLAMA.get().map(PathBuf::from),
        missing: BTreeMap::new(),
        versions: BTreeMap::new(),
    };
    if bench.llama.is_none() {
        bench.missing.insert("llama.cpp", format!("{} names no Python", BENCH_LLAMA.name));
    }
    let mut parts = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => {
                bench.rounds = arguments.next().and_then(|count| count.parse().ok()).ok_or("--rounds NUMBER")?;
            }
            "--choose" => bench.choose = true,
            _ => parts.push(argument),
        }
    }
    for shape in [S, M] {
        ours::make_model(shape, &bench.directory.join(shape.name))?;
    }
    let mut out = std::io::stdout();
    writeln!(
        out,
        "| model | case | sami, s | PyTorch, s | sami is × as fast | aim | sami, MiB | PyTorch, MiB | ratio | aim | llama.cpp, s | results differ | PyTorch's settings |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    )?;
    // A whole name means that case, and not those whose names go on.
    let named = |part: &String| CASES.iter().any(|case| case.name == part);
    let asked = |case: &&Case| {
        let is = |part: &String| if named(part) { case.name == part } else { case.name.contains(part.as_str()) };
        parts.is_empty() || parts.iter().any(is)
    };
    for case in CASES.iter().filter(asked) {
        let (measured, settings) = bench.run(case)?;
        writeln!(out, "{}", line(case, &measured, &settings))?;
        out.flush()?;
        let log = json!({
            "case": case.name,
            "seconds": measured.each_ref().map(|side| &side.seconds),
            "peak_kib": measured.each_ref().map(|side| side.peak_kib),
        });
        let mut file = fs_err::OpenOptions::new().create(true).append(true).open(bench.directory.join("log.jsonl"))?;
        writeln!(file, "{log}")?;
    }
    for (who, version) in bench.versions.iter().filter(|(who, version)| *who != version) {
        writeln!(out, "\n{who}: {version}.")?;
    }
    for (who, why) in &bench.missing {
        writeln!(out, "\n{who} is not there: {why}.")?;
    }
    Ok(())
}
