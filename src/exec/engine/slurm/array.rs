//! The parts of a node as one job array: one call of `sbatch`, one line in the queue until they start.
//!
//! A task's index is the number of its part, which its mark ends in: `RUN/NODE.ATTEMPT#PART.TRY`. The array's comment has a
//! star for it.

use std::fmt::Write;

use super::{Refusal, Submission, complaint, sbatch};
use crate::exec::engine::program::ask;
use crate::fs;
use crate::shell::quoted;

/// Indices stay below the site's `MaxArraySize`, which is 1001 where no one changed it.
const LARGEST: u32 = 1000;

/// A mark, taken apart: what parts share before and behind the number, and the number.
fn parts(mark: &str) -> Option<(&str, u32, &str)> {
    let (front, rest) = mark.rsplit_once('#')?;
    let (number, back) = rest.split_once('.')?;
    Some((front, number.parse().ok().filter(|number| *number <= LARGEST)?, back))
}

/// The mark of a task of an array with this comment.
pub(super) fn mark_of(comment: &str, task: &str) -> Option<String> {
    let (front, back) = comment.split_once("#*.")?;
    task.parse::<u32>().ok().map(|task| format!("{front}#{task}.{back}"))
}

/// Jobs in the groups that are submitted at once, by their places: those of an array, and others alone.
pub(super) fn groups(jobs: &[Submission]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let key = |job: &Submission| {
        let (front, _, back) = parts(&job.mark)?;
        Some((job.group.clone()?, front.to_owned(), back.to_owned()))
    };
    for (place, job) in jobs.iter().enumerate() {
        let fits = |group: &&mut Vec<usize>| {
            let first = &jobs[group[0]];
            key(job).is_some() && key(job) == key(first) && first.resources == job.resources
        };
        match groups.iter_mut().find(fits) {
            Some(group) => group.push(place),
            None => groups.push(vec![place]),
        }
    }
    groups
}

/// Submits jobs of one group as an array. Returns the id of each, or why there is none.
pub(super) fn submit(jobs: &[&Submission]) -> Vec<Result<String, Refusal>> {
    let refused = |refusal: Refusal| jobs.iter().map(|_| Err(refusal.clone())).collect();
    let tasks: Vec<u32> = jobs.iter().filter_map(|job| Some(parts(&job.mark)?.1)).collect();
    let (Some(first), Some((front, _, back))) = (jobs.first(), jobs.first().and_then(|job| parts(&job.mark))) else {
        return Vec::new();
    };
    let mut script = String::from("#!/bin/sh\ncase $SLURM_ARRAY_TASK_ID in\n");
    for (job, task) in jobs.iter().zip(&tasks) {
        let path = |path: &std::path::Path| quoted(&path.display().to_string());
        let (text, log) = (path(&job.directory.join("job.sh")), path(&job.log));
        let _ = writeln!(script, "{task}) exec sh {text} >>{log} 2>&1 ;;");
    }
    script.push_str("esac\n");
    let file = first.directory.join("array.sh");
    if let Err(error) = fs::write(&file, script) {
        let finding = crate::diag::Diagnostic::error("cluster::refused", "the script of a job array cannot be written");
        return refused(Refusal {
            finding: Box::new(finding.note(error.to_string()).help("see the disk of the cache")),
            passing: false,
        });
    }
    let what = first.what.split(", shard ").next().unwrap_or_default();
    let of_all = Submission {
        mark: format!("{front}#*.{back}"),
        what: format!("{what}, {} shards", jobs.len()),
        // Each task has its own.
        log: "/dev/null".into(),
        ..(*first).clone()
    };
    let list: Vec<String> = tasks.iter().map(u32::to_string).collect();
    let mut command = sbatch(&of_all);
    command.arg(format!("--array={}", list.join(","))).arg(file);
    match ask(command) {
        Ok(answer) => {
            let id = answer.out.lines().last().unwrap_or_default().split(';').next().unwrap_or_default().trim();
            if answer.ok && !id.is_empty() {
                tasks.iter().map(|task| Ok(format!("{id}_{task}"))).collect()
            } else {
                refused(complaint("sbatch", &answer))
            }
        }
        Err(refusal) => refused(refusal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_node_are_an_array_and_the_rest_is_alone() {
        let job = |mark: &str, group: Option<&str>| Submission {
            mark: mark.to_owned(),
            group: group.map(str::to_owned),
            ..Submission::sample()
        };
        let jobs = [
            job("r/a.1#1.1", Some("a")),
            job("r/b.1", None),
            job("r/a.1#2.1", Some("a")),
            job("r/a.1#3.2", Some("a")),
            job("r/c.1#1.1", Some("c")),
            job("r/a.1#4000.1", Some("a")),
            job("r/a.1#5.1", Some("a")),
        ];
        assert_eq!(groups(&jobs), [vec![0, 2, 6], vec![1], vec![3], vec![4], vec![5]]);
        assert_eq!(mark_of("r/a.1#*.1", "7").as_deref(), Some("r/a.1#7.1"));
        assert_eq!((mark_of("r/a.1", "7"), mark_of("r/a.1#*.1", "N/A")), (None, None));
    }
}
