use std::path::Path;
use std::process::Command;
use std::sync::{Barrier, OnceLock};
use std::thread::spawn;

use super::super::super::driver::Open;
use super::*;
use crate::collective::{Door, Meeting, Token};

/// A library that adds up numbers in the memory of this process (`tests/fake_cuda/nccl.c`).
pub(in crate::lm::train) fn compiled(options: &[&str]) -> Nccl {
    let place = tempfile::tempdir().expect("a directory");
    let library = place.path().join("libnccl.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_cuda/nccl.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-w", "-shared", "-fPIC", "-o"]).arg(&library).args(options).arg(source).arg("-lpthread");
    let output = compiler.output().expect("there is a C compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let open = Open::path(library.to_str().expect("a path")).expect("it opens");
    Nccl::of(open).expect("it has all functions")
}

pub(in crate::lm::train) fn nccl() -> Nccl {
    static COMPILED: OnceLock<Nccl> = OnceLock::new();
    *COMPILED.get_or_init(|| compiled(&[]))
}

/// Runs `work` as every rank of a team that has come together.
fn ranks<T: Send + 'static>(ranks: usize, work: fn(DeviceSum, Team) -> T) -> Vec<T> {
    let door = Door::here(Token::draw().expect("random")).expect("listens");
    let meeting = move |rank| Meeting::new(rank, ranks, "a test".to_owned());
    let meet = move |mut team: Team| {
        let sum = DeviceSum::meet(&mut team, Ok(nccl()), &Device::Cpu).expect("all are there").expect("they meet");
        work(sum, team)
    };
    let others: Vec<_> = (1..ranks)
        .map(|rank| {
            let rendezvous = door.rendezvous().clone();
            spawn(move || meet(rendezvous.join(&meeting(rank)).expect("joins")))
        })
        .collect();
    let first = meet(door.meet(&meeting(0), || Ok(())).expect("all come"));
    std::iter::once(first).chain(others.into_iter().map(|other| other.join().expect("no panic"))).collect()
}

fn parameters() -> BTreeMap<String, Var> {
    let parameter = |(name, shape): (&str, &[usize])| {
        (name.to_owned(), Var::zeros(shape, DType::F32, &Device::Cpu).expect("makes"))
    };
    [("a", &[2, 3][..]), ("b", &[1]), ("c", &[0]), ("d", &[4]), ("e", &[7])].map(parameter).into()
}

/// Gradients of a rank, in several types.
fn own(rank: usize) -> BTreeMap<String, Tensor> {
    let types = [DType::F32, DType::BF16, DType::F32, DType::BF16, DType::F16];
    let gradient = |(index, (name, parameter)): (usize, (&String, &Var))| {
        let numbers = (0..parameter.elem_count()).map(|at| (at + 10 * index + 100 * rank) as f32).collect::<Vec<_>>();
        let gradient =
            Tensor::from_vec(numbers, parameter.shape(), &Device::Cpu).and_then(|all| all.to_dtype(types[index]));
        (name.clone(), gradient.expect("makes"))
    };
    parameters().iter().enumerate().map(gradient).collect()
}

#[test]
fn gradients_are_added_up_in_buckets_of_any_size() {
    let sums = ranks(3, |sum, mut team| {
        // Rank 1 has computed nothing.
        let own = |rank| if rank == 1 { BTreeMap::new() } else { own(rank) };
        let found = [1, 5, 8, 1000].map(|most| {
            let own = own(team.rank());
            let sums = sum.in_buckets(most, &mut team, &parameters(), own).expect("adds up");
            let numbers = |(name, sum): (&String, &Tensor)| {
                let numbers = sum.flatten_all().and_then(|all| all.to_vec1::<f32>()).expect("f32");
                (name.clone(), sum.dims().to_vec(), numbers)
            };
            sums.iter().map(numbers).collect::<Vec<_>>()
        });
        team.gather(Vec::new()).expect("all are done");
        team.leave();
        found
    });
    for found in sums.iter().flatten() {
        assert_eq!(found.len(), 5);
        for (index, (name, shape, numbers)) in found.iter().enumerate() {
            assert_eq!(shape, parameters()[name].dims(), "{name}");
            let wanted: Vec<f32> = (0..numbers.len()).map(|at| (2 * (at + 10 * index) + 200) as f32).collect();
            assert_eq!(*numbers, wanted, "{name}");
        }
    }
}

/// NCCL would wait for ever.
#[test]
fn a_rank_that_is_gone_ends_the_sum_of_the_others() {
    // It does not go while another one still listens for its first word.
    static THERE: Barrier = Barrier::new(3);
    let errors = ranks(3, |sum, mut team| {
        team.gather(Vec::new()).expect("all are there");
        THERE.wait();
        if team.rank() == 2 {
            return None;
        }
        let own = own(team.rank());
        let error = sum.of(&mut team, &parameters(), own).expect_err("one is gone");
        assert!(team.gather(Vec::new()).is_err(), "and so it stays");
        Some(error)
    });
    for error in &errors[..2] {
        let error = error.as_ref().expect("one that stayed");
        assert!(matches!(error, LmError::Team(TeamError::Lost { rank: 2, ranks: 3, .. })), "{error}");
    }
}

#[test]
fn what_fails_in_nccl_is_said_by_its_rank() {
    let errors = ranks(2, |sum, mut team| {
        if team.rank() == 1 {
            // Other numbers than rank 0 adds up, which the library refuses.
            let fewer = parameters().into_iter().take(1).collect();
            return sum.of(&mut team, &fewer, BTreeMap::new()).expect_err("is refused").to_string();
        }
        sum.of(&mut team, &parameters(), own(0)).expect_err("is refused").to_string()
    });
    assert!(errors.iter().all(|error| error.contains("NCCL says: invalid argument")), "{errors:?}");
}

#[test]
fn buckets_have_as_many_gradients_as_fit_and_one_at_least() {
    assert_eq!(buckets(&[3, 3, 3, 3], 6), [0..2, 2..4]);
    assert_eq!(buckets(&[3, 3, 3], 8), [0..2, 2..3]);
    assert_eq!(buckets(&[9, 1, 1, 9, 9], 4), [0..1, 1..3, 3..4, 4..5]);
    assert_eq!(buckets(&[0, 0, 4, 0], 4), vec![Range { start: 0, end: 4 }]);
    assert_eq!(buckets(&[usize::MAX, usize::MAX], 4), [0..1, 1..2]);
    assert!(buckets(&[], 4).is_empty());
    // Each is in one, and none is too large that could be smaller.
    let counts: Vec<usize> = (0..200).map(|at| (at * 7919) % 613).collect();
    let all = buckets(&counts, 1000);
    assert_eq!(all.iter().cloned().flatten().collect::<Vec<_>>(), (0..200).collect::<Vec<_>>());
    assert!(all.iter().all(|bucket| counts[bucket.clone()].iter().sum::<usize>() <= 1000));
}

#[test]
fn all_ranks_have_one_version_or_it_is_said_who_has_not() {
    fn missing<T>(why: &str) -> Result<T, String> {
        Err(why.to_owned())
    }
    assert_eq!(one_version(&[Ok(22_809), Ok(22_809)]), Ok("2.28.9".to_owned()));
    assert_eq!(one_version(&[Ok(22_809), Ok(21_805)]), missing("rank 1 has NCCL 2.18.5, rank 0 has 2.28.9"));
    assert_eq!(one_version(&[missing("off"), missing("off")]), missing("off"));
    assert_eq!(one_version(&[Ok(22_809), missing("not found")]), missing("rank 1: not found"));
}
