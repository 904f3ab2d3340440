//! What `sami doctor` says of a machine, whatever the machine.

use sami::cli::DONE;
use sami::lm::device::CUDA;

use super::sandbox::Sandbox;

#[test]
fn doctor_tells_people_and_programs_the_same() {
    let sandbox = Sandbox::with("");
    let report = sandbox.sami(&["doctor", "--json"]).exits(DONE.into()).json();
    let text = sandbox.sami(&["doctor"]).exits(DONE.into()).stdout;
    let line =
        |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}: {text}"));

    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert!(line("sami").contains(if CUDA { "built with cuda" } else { "built without CUDA" }), "{text}");
    let threads = report["cpu"]["threads"].as_u64().expect("a number");
    assert!(threads > 0 && line("threads").ends_with(&format!(" {threads}")), "{text}");
    assert!(line("instructions").ends_with(report["cpu"]["instructions"].as_str().expect("a text")), "{text}");
    assert!(report["cpu"]["memory"].as_u64() >= report["cpu"]["available"].as_u64(), "{report}");
    assert!(line("cache").ends_with("(not there yet)"), "{text}");

    let auto: Vec<&str> = report["auto"].as_array().expect("a list").iter().filter_map(|name| name.as_str()).collect();
    assert_eq!(line("auto").split_whitespace().skip(1).collect::<Vec<_>>().join(" "), auto.join(", "));
    // Where a GPU is used there is no reason against it, and the other way round.
    assert_eq!(auto == ["cpu"], text.contains("no GPU"), "{text}");
    if !CUDA {
        assert_eq!(auto, ["cpu"]);
        assert_eq!(report["cuda"]["unusable"], "this program was built without CUDA");
    }
}

#[test]
fn doctor_shows_variables_and_the_state_of_the_cache() {
    let sandbox = Sandbox::with("");
    let cache = sandbox.path("cache");
    fs_err::create_dir_all(&cache).expect("is made");
    fs_err::write(cache.join("something"), "else").expect("is written");
    let output = sandbox.command(&["doctor"]).env("SAMI_CUDA_LIBS", "/nowhere").output().expect("runs");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{text}");
    assert!(text.contains("environment  SAMI_CUDA_LIBS=/nowhere\n"), "{text}");
    let cache = text.lines().find(|line| line.starts_with("cache")).expect("a line");
    assert!(cache.contains("no cache") || cache.contains("not a cache") || cache.contains("is no"), "{cache}");
}
