//! What Slurm's programs complain of, told apart.

use super::{Answer, Refusal};
use crate::diag::Diagnostic;

/// What a complaint holds, the id that it is told under, what is wrong, what to do, and whether it may pass.
const KNOWN: &[(&[&str], &str, &str, &str, bool)] = &[
    (
        &["munge", "Munge", "MUNGE", "uthentication"],
        "cluster::munge",
        "Slurm does not trust this machine: MUNGE does not answer, or its key is another one",
        "have `munged` started here, with the cluster's key and a right clock (`munge -n | unmunge` must succeed)",
        true,
    ),
    (
        &["Unable to contact slurm controller", "Connection refused", "Connection timed out", "Socket timed out"],
        "cluster::unreachable",
        "Slurm's controller does not answer",
        "see `scontrol ping`; jobs that run go on, and `sami attach` finds them again",
        true,
    ),
    (
        &["Zero Bytes"],
        "cluster::unreachable",
        "Slurm's controller does not answer",
        "see `scontrol ping`; one that hangs up may not trust this machine: MUNGE's key and the clock must be right here; \
         jobs that run go on, and `sami attach` finds them again",
        true,
    ),
    (
        &["invalid partition", "Invalid partition"],
        "cluster::partition",
        "there is no such partition",
        "`sinfo -s` lists them; name one as `partition` in the profile",
        false,
    ),
    (
        &["Invalid account", "invalid account"],
        "cluster::account",
        "the account or partition may not be used by this user",
        "`sacctmgr show assoc user=$USER` lists accounts; name one as `account` in the profile",
        false,
    ),
    (
        &["Invalid qos", "invalid qos", "Invalid QOS"],
        "cluster::qos",
        "there is no such quality of service for this user",
        "`sacctmgr show qos` lists them; name one as `qos` in the profile",
        false,
    ),
    (
        &[
            "QOSMaxSubmit",
            "AssocMaxSubmit",
            "maximum number of jobs",
            "MaxJobs",
            "violates accounting/QOS policy",
            "Resource temporarily unavailable",
        ],
        "cluster::quota",
        "no more jobs may be submitted now",
        "lower `jobs` in the profile; those that are refused are submitted again when others have ended",
        true,
    ),
    (
        &[
            "Requested node configuration is not available",
            "Memory specification can not be satisfied",
            "Requested time limit is invalid",
            "CPU count",
            "Invalid feature",
            "Invalid generic resource",
            "More processors requested",
        ],
        "cluster::too-much",
        "no machine has what is asked for",
        "`scontrol show node` says what machines have: `memory`, `cpus`, `gres`, `time` and `constraint` in the profile",
        false,
    ),
];

/// Why a program did not do what it was asked to.
pub(super) fn complaint(program: &str, answer: &Answer) -> Refusal {
    let said = answer.complaint();
    let holds = |words: &&[&str]| words.iter().any(|word| said.contains(word));
    match KNOWN.iter().find(|(words, ..)| holds(words)) {
        Some((_, id, title, help, passing)) => {
            let finding = Diagnostic::error(id, *title).note(format!("{program}: {said}")).help(*help);
            Refusal { finding: Box::new(finding), passing: *passing }
        }
        None => {
            let finding = Diagnostic::error("cluster::refused", format!("`{program}` does not do what it is asked to"))
                .note(format!("{program}: {said}"))
                .help("see the profile in sami.toml, above all `extra`; the same in a terminal says more");
            Refusal { finding: Box::new(finding), passing: false }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_told_apart() {
        let of = |text: &str| {
            let refusal = complaint("sbatch", &Answer { ok: false, out: String::new(), err: text.to_owned() });
            (refusal.finding.id, refusal.passing)
        };
        assert_eq!(of("sbatch: error: invalid partition specified: nope\n"), ("cluster::partition", false));
        assert_eq!(of("sbatch: error: If munged is up, restart with --num-threads=10"), ("cluster::munge", true));
        assert_eq!(of("Unable to contact slurm controller (connect failure)"), ("cluster::unreachable", true));
        assert_eq!(of("allocation failure: Requested node configuration is not available").0, "cluster::too-much");
        assert_eq!(of("sbatch: error: unrecognized option '--x'"), ("cluster::refused", false));
        assert_eq!(of(""), ("cluster::refused", false));
    }
}
