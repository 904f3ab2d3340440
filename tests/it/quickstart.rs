//! The quickstart keeps its promises.

use std::path::Path;

use super::sandbox::{Output, Sandbox};

/// What the quickstart makes here. Takes what `.ci/run` has computed in `target/ci-cache`, and computes it where that is missing.
pub(crate) fn here() -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Sandbox::new().command(&["run", "pipelines/quickstart.toml", "--json", "--cache"]);
    command.arg(root.join("target/ci-cache")).current_dir(root).output().expect("it starts").into()
}

#[test]
#[ignore = "takes minutes where the quickstart has not been run before"]
fn it_reaches_its_figures() {
    let done = here().exits(0).json();
    let last = done["nodes"].as_array().expect("a list").iter().rfind(|node| node["kind"] == "evaluate");
    let metrics = &last.expect("an evaluation")["metrics"];
    let number = |name: &str| metrics[name].as_f64().unwrap_or_else(|| panic!("no {name} in {metrics}"));
    let of = |name: &str| (number(&format!("{name}.base")), number(&format!("{name}.sami")));
    let (base, sami) = of("bound");
    assert!(base > 0.0 && sami >= 5.0 * base, "bound {base} -> {sami}");
    assert!(sami <= number("bound_ceiling"), "bound {sami}");
    assert!(number("win_rate") >= 0.65 && number("win_rate_low") > 0.58, "{metrics}");
    let (base, sami) = of("adherence");
    assert!(sami - base >= 0.18, "adherence {base} -> {sami}");
    let (base, sami) = of("mean_length");
    assert!((0.8..=1.2).contains(&(sami / base)), "mean length {base} -> {sami}");
    let (base, sami) = of("well_formed");
    assert!(base - sami <= 0.06, "well formed {base} -> {sami}");
}
