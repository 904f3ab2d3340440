use super::super::Settings;
use super::*;

fn profiles(text: &str) -> Vec<Profile> {
    Settings::parse("sami.toml", text).unwrap_or_else(|faults| panic!("{faults:#?}")).profiles
}

fn fault(text: &str) -> crate::diag::Diagnostic {
    let mut faults = Settings::parse("sami.toml", text).expect_err("it is wrong");
    assert_eq!(faults.len(), 1, "{faults:#?}");
    faults.remove(0)
}

#[test]
fn a_profile_is_read_with_what_kinds_and_nodes_ask_for() {
    let all = profiles(
        r#"
        [profiles.cluster]
        executor = "slurm"
        partition = "gpu"
        account = "lab"
        gres = "gpu:1"
        cpus = 8
        memory = "64GB"
        time = "4h"
        setup = ["module load cuda", "export X=1"]
        container = ["apptainer", "exec", "--nv", "sami.sif"]
        on_interrupt = "leave"
        interval = "10s"
        memory_growth = 2
        memory_limit = "128GB"
        [profiles.cluster.kinds.command]
        run_on = "here"
        [profiles.cluster.kinds.finetune]
        gres = "gpu:8"
        time = "1-00:00:00"
        [profiles.cluster.nodes."finetune@*"]
        memory = "100GB"
        [profiles.cluster.nodes."finetune@3"]
        time = "30m"
        [profiles.here]
        "#,
    );
    let profile = &all[0];
    assert_eq!((profile.name.as_str(), &profile.executor), ("cluster", &Executor::Slurm));
    assert_eq!((profile.on_interrupt, profile.interval), (OnInterrupt::Leave, Duration::from_secs(10)));
    assert_eq!((profile.memory_growth, profile.memory_limit), (2.0, Some(128_000_000_000)));
    let of = |kind: &str, node: &str| profile.resources(kind, node);
    assert_eq!(of("generate", "draft").time, Some(Duration::from_secs(14400)));
    assert_eq!(of("generate", "draft").device(), "cuda:0");
    assert_eq!(of("command", "x").site, Some(Site::Here));
    let last = of("finetune", "finetune@3");
    assert_eq!((last.gres.as_deref(), last.memory), (Some("gpu:8"), Some(100_000_000_000)));
    assert_eq!((last.time, last.partition.as_deref()), (Some(Duration::from_secs(1800)), Some("gpu")));
    assert_eq!(of("finetune", "finetune@1").time, Some(Duration::from_secs(86400)));
    assert_eq!(of("finetune", "other").memory, Some(64_000_000_000));
    assert_eq!((all[1].executor.clone(), all[1].base.device()), (Executor::Local, "cpu"));
}

#[test]
fn gpus_of_a_job_are_counted_where_gres_says_how_many() {
    let of = |gres: &str| Resources { gres: Some(gres.to_owned()), ..Resources::default() };
    for (gres, count) in
        [("gpu", 1), ("gpu:4", 4), ("gpu:a100", 1), ("gpu:a100:2,gpu:v100:1,shard:8", 3), ("fpga:2", 0)]
    {
        assert_eq!(of(gres).gpus(), Some(count), "{gres}");
    }
    assert_eq!(Resources::default().gpus(), None);
    let extra = Some(vec!["--nodes=2".to_owned()]);
    assert_eq!(Resources { extra, ..of("gpu:4") }.gpus(), None, "of each machine");
    let container = Some(vec!["/usr/bin/srun".to_owned()]);
    assert_eq!(Resources { container, ..of("gpu:4") }.gpus(), None);
}

#[test]
fn what_is_wrong_in_a_profile_has_its_place() {
    let with = |line: &str| fault(&format!("[profiles.c]\nexecutor = \"slurm\"\n{line}\n"));
    assert_eq!(with("partitoin = \"x\"").help, ["a key with a similar name exists: `partition`"]);
    assert_eq!(
        with("[profiles.c.kinds.generate]\nmemry = \"1GB\"").help,
        ["a key with a similar name exists: `memory`"]
    );
    for line in [
        "executor_ = 1",
        "memory = 64",
        "memory = \"64 elephants\"",
        "time = \"soon\"",
        "cpus = 0",
        "setup = 3",
        "container = [1]",
        "on_interrupt = \"panic\"",
        "memory_growth = 0.5",
        "kinds = 3",
        "kinds = { generate = 3 }",
        "submit = \"qsub\"",
        "run_on = \"moon\"",
        "retries = -1",
    ] {
        let fault = with(line);
        assert_eq!(fault.labels[0].source.position(fault.labels[0].span.start).0, 3, "{line}");
        assert!(!fault.help.is_empty(), "{line}");
    }
    assert_eq!(fault("[profiles]\nx = 3\n").id, "settings::value");
    assert_eq!(fault("[profiles.c]\nexecutor = \"slrum\"\n").help, ["did you mean \"slurm\"?"]);
    let lacking = Settings::parse("sami.toml", "[profiles.c]\nexecutor = \"command\"\n").expect_err("it is wrong");
    assert_eq!(lacking.len(), 3, "{lacking:#?}");
    assert!(lacking.iter().all(|fault| fault.id == "settings::missing-key"));
}

#[test]
fn names_are_as_patterns_say() {
    for (pattern, name, is) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("*", "anything", true),
        ("finetune@*", "finetune@3", true),
        ("finetune@*", "finetune", false),
        ("*@3", "finetune@3", true),
        ("a*b*c", "a-b-b-c", true),
        ("a*b*c", "a-c", false),
        ("a*a", "a", false),
    ] {
        assert_eq!(matches(pattern, name), is, "{pattern} {name}");
    }
}
