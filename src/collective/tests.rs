use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Barrier;
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use super::tree::{Branch, Stack, shares};
use super::{Door, Meeting, Rendezvous, Task, Team, TeamError, Token};

fn meeting(rank: usize, ranks: usize) -> Meeting {
    let (patience, silence) = (Duration::from_secs(20), Duration::from_secs(20));
    Meeting { patience, silence, ..Meeting::new(rank, ranks, "a test".to_owned()) }
}

/// Runs `work` as every rank of a team, and returns what each came to.
fn ranks<T: Send + 'static>(ranks: usize, work: impl Fn(Team) -> T + Send + Sync + Clone + 'static) -> Vec<T> {
    let door = Door::here(Token::draw().expect("random")).expect("listens");
    let others: Vec<JoinHandle<T>> = (1..ranks)
        .map(|rank| {
            let (rendezvous, work) = (door.rendezvous().clone(), work.clone());
            spawn(move || work(rendezvous.join(&meeting(rank, ranks)).expect("joins")))
        })
        .collect();
    let first = work(door.meet(&meeting(0, ranks), || Ok(())).expect("all come"));
    std::iter::once(first).chain(others.into_iter().map(|other| other.join().expect("no panic"))).collect()
}

/// Numbers whose sum depends on the order in which they are added.
fn leaf(leaf: usize, length: usize) -> Vec<f32> {
    (0..length).map(|at| ((at * 7919 + leaf * 104_729) % 2003) as f32 * 0.37 - 250.0).collect()
}

fn add(sum: &mut [f32], other: Vec<f32>) -> Result<(), std::convert::Infallible> {
    sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
    Ok(())
}

/// What a rank has of a tree of leaves that are shared out.
fn own(leaves: usize, length: usize, rank: usize, ranks: usize) -> Vec<(Branch, Vec<f32>)> {
    let mut stack = Stack::new(leaves);
    for index in shares(&vec![1; leaves], ranks).swap_remove(rank) {
        let Ok(()) = stack.push(Branch::leaf(index), leaf(index, length), |sum, other| add(sum, other));
    }
    stack.into_branches()
}

#[test]
fn sums_have_the_same_bits_on_any_number_of_ranks() {
    for (leaves, length) in [(1, 1), (5, 7), (16, 1), (16, 1003), (6, 200_001)] {
        let (_, alone) = own(leaves, length, 0, 1).swap_remove(0);
        let alone: Vec<u32> = alone.iter().map(|number| number.to_bits()).collect();
        for count in 1..=5 {
            let sums = ranks(count, move |mut team| {
                let own = own(leaves, length, team.rank(), team.ranks());
                let sums: Vec<_> = (0..2).map(|_| team.sum(leaves, length, own.clone()).expect("sums")).collect();
                team.leave();
                sums
            });
            for sum in sums.into_iter().flatten() {
                let sum: Vec<u32> = sum.iter().map(|number| number.to_bits()).collect();
                assert!(sum == alone, "{leaves} leaves of {length} numbers on {count} ranks");
            }
        }
    }
}

#[test]
fn a_sum_of_no_numbers_is_none() {
    let sums = ranks(3, |mut team| {
        let own = own(4, 0, team.rank(), team.ranks());
        let sum = team.sum(4, 0, own).expect("sums");
        team.leave();
        sum
    });
    assert!(sums.iter().all(Vec::is_empty));
}

#[test]
fn every_rank_gets_what_each_says_and_what_the_first_says() {
    let said = ranks(4, |mut team| {
        let all = team.gather(vec![team.rank() as u8; team.rank()]).expect("all say it");
        let first = team.said_by_first(vec![9, team.rank() as u8]).expect("is said");
        team.leave();
        (all, first)
    });
    for (all, first) in said {
        assert_eq!(all, [vec![], vec![1], vec![2, 2], vec![3, 3, 3]]);
        assert_eq!(first, [9, 0]);
    }
}

#[test]
fn a_slow_rank_is_waited_for_and_changes_nothing() {
    let sums = ranks(3, |mut team| {
        for turn in 0..3 {
            // Another one is late each time; it beats, so it is not lost.
            if team.rank() == turn {
                std::thread::sleep(Duration::from_millis(150));
            }
            let own = own(16, 50, team.rank(), 3);
            let sum = team.sum(16, 50, own.clone()).expect("sums");
            assert_eq!(sum, team.sum(16, 50, own).expect("sums again"));
        }
        team.leave();
        Ok::<(), TeamError>(())
    });
    assert_eq!(sums, vec![Ok(()); 3]);
}

#[test]
fn a_lost_rank_is_noticed_at_once_and_named_by_all() {
    // None goes while another one still listens for the first word.
    static THERE: Barrier = Barrier::new(4);
    let began = Instant::now();
    let errors = ranks(4, |mut team| {
        team.gather(Vec::new()).expect("all are there");
        THERE.wait();
        if team.rank() == 2 {
            return None;
        }
        let error = team.gather(Vec::new()).expect_err("one is gone");
        assert_eq!(team.said_by_first(Vec::new()), Err(error.clone()), "and so it stays");
        Some(error.to_string())
    });
    assert!(began.elapsed() < Duration::from_secs(10), "no one waited until it was silent for long");
    for (rank, error) in errors.into_iter().enumerate().filter(|(rank, _)| *rank != 2) {
        let error = error.expect("one that stayed");
        assert!(error.starts_with("rank 2 of 4 is lost: "), "rank {rank}: {error}");
    }
}

/// What goes by other ways than the connections ends with them, too.
#[test]
fn a_wait_for_something_else_ends_when_a_rank_is_lost_or_says_something() {
    static THERE: Barrier = Barrier::new(3);
    let errors = ranks(3, |mut team| {
        team.gather(Vec::new()).expect("all are there");
        THERE.wait();
        if team.rank() == 1 {
            return None;
        }
        let error = team.meanwhile(|_| Ok(None::<()>)).expect_err("one is gone");
        assert_eq!(team.meanwhile(|_| Ok(Some(()))), Err(error.clone()), "and so it stays");
        Some(error.to_string())
    });
    for error in [&errors[0], &errors[2]] {
        let error = error.as_ref().expect("one that stayed");
        assert!(error.starts_with("rank 1 of 3 is lost: "), "{error}");
    }

    let found = ranks(2, |mut team| {
        let mut asked = 0;
        if team.rank() == 0 {
            // What the other says of the next operation is not taken from it.
            let heard = team.meanwhile(|team| Ok(team.said(1).map(<[u8]>::to_vec))).expect("it says it");
            asked = heard.len();
        }
        let all = team.gather(vec![7; team.rank()]).expect("both");
        team.leave();
        (asked, all)
    });
    assert_eq!(found, [(1, vec![vec![], vec![7]]), (0, vec![vec![], vec![7]])]);

    let errors = ranks(2, |mut team| {
        let last = |team: &Team| if team.rank() == 1 { Err(team.failure("the GPU is gone")) } else { Ok(None::<()>) };
        team.meanwhile(last).expect_err("one cannot go on")
    });
    assert!(errors.iter().all(|error| error.to_string() == "rank 1: the GPU is gone"), "{errors:?}");
}

#[test]
fn a_rank_that_cannot_go_on_says_why() {
    let errors = ranks(3, |mut team| {
        if team.rank() == 1 {
            team.line().abort("the disk is full");
            return String::new();
        }
        team.sum(3, 4, vec![(Branch::leaf(team.rank()), vec![1.0; 4])]).expect_err("one has failed").to_string()
    });
    assert_eq!([&errors[0], &errors[2]], ["rank 1: the disk is full"; 2]);
}

#[test]
fn a_rank_that_is_silent_is_lost_and_one_that_has_left_is_not() {
    let door = Door::here(Token::draw().expect("random")).expect("listens");
    let rendezvous = door.rendezvous().clone();
    let short = |rank| Meeting { silence: Duration::from_millis(400), ..meeting(rank, 2) };
    // It is there, and says nothing more: as one whose machine was stopped.
    let other = spawn(move || {
        let silent = Meeting { silence: Duration::from_secs(3600), ..short(1) };
        let team = rendezvous.join(&silent).expect("joins");
        std::thread::sleep(Duration::from_secs(2));
        drop(team);
    });
    let mut team = door.meet(&short(0), || Ok(())).expect("meets");
    let error = team.gather(Vec::new()).expect_err("is silent");
    assert_eq!(error.to_string(), "rank 1 of 2 is lost: nothing was heard of it for 0.4 s");
    other.join().expect("no panic");

    let left = ranks(2, |mut team| {
        team.gather(Vec::new()).expect("both");
        if team.rank() == 1 {
            team.line().leave();
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
        team.check()
    });
    assert_eq!(left, [Ok(()), Ok(())]);
}

#[test]
fn ranks_out_of_step_are_found_out() {
    let errors = ranks(2, |mut team| {
        let length = 3 + team.rank();
        let own = vec![(Branch::leaf(team.rank()), vec![1.0; length])];
        team.sum(2, length, own).err().map(|error| error.to_string())
    });
    assert!(errors.iter().flatten().any(|error| error.contains("out of step")), "{errors:?}");
    let errors = ranks(2, |mut team| {
        let own = (team.rank() == 0).then(|| (Branch::leaf(0), vec![1.0; 2]));
        team.sum(2, 2, own.into_iter().collect()).err().map(|error| error.to_string())
    });
    assert!(errors.iter().flatten().any(|error| error.contains("parts that make no whole")), "{errors:?}");
}

#[test]
fn strangers_are_kept_out_and_do_not_keep_others_out() {
    let door = Door::here(Token::draw().expect("random")).expect("listens");
    let rendezvous = door.rendezvous().clone();
    let address = rendezvous.addresses[0].clone();
    // One that says nothing, one that speaks something else, one with another token.
    let silent = TcpStream::connect(&address).expect("connects");
    let mut other = TcpStream::connect(&address).expect("connects");
    other.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").expect("writes");
    let wrong = Rendezvous { token: Token::draw().expect("random"), ..rendezvous.clone() };
    let hasty = Meeting { patience: Duration::from_millis(300), ..meeting(1, 2) };
    let stranger = spawn(move || wrong.join(&hasty).expect_err("has another token").to_string());
    let friend = spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        let mut team = rendezvous.join(&meeting(1, 2)).expect("joins");
        team.gather(vec![1]).expect("both")
    });
    let mut team = door.meet(&meeting(0, 2), || Ok(())).expect("the right one comes");
    assert_eq!(team.gather(vec![0]).expect("both"), [[0], [1]]);
    friend.join().expect("no panic");
    let error = stranger.join().expect("no panic");
    assert!(error.contains("the token is that of another team"), "{error}");
    drop(silent);
}

#[test]
fn ranks_that_do_not_fit_are_refused_by_name() {
    let refused = |other: Meeting| {
        let door = Door::here(Token::draw().expect("random")).expect("listens");
        let rendezvous = door.rendezvous().clone();
        let there = spawn(move || rendezvous.join(&other).expect_err("does not fit").to_string());
        let here = door.meet(&meeting(0, 3), || Ok(())).expect_err("does not fit").to_string();
        (here, there.join().expect("no panic"))
    };
    let (here, there) = refused(Meeting { subject: "another".to_owned(), ..meeting(1, 3) });
    assert_eq!(here, "the ranks do not fit together: the work of rank 1 is another, that of rank 0 is a test");
    assert!(there.contains("that of rank 0 is a test"), "{there}");
    let (here, _) = refused(meeting(1, 2));
    assert!(here.contains("the number of ranks of rank 1 is 2, that of rank 0 is 3"), "{here}");
}

#[test]
fn whoever_does_not_come_is_named() {
    let hasty = |rank, ranks| Meeting { patience: Duration::from_millis(150), ..meeting(rank, ranks) };
    let door = Door::here(Token::draw().expect("random")).expect("listens");
    let error = door.meet(&hasty(0, 3), || Ok(())).expect_err("no one comes").to_string();
    assert_eq!(error, "the ranks did not come together: rank 1, 2 of 3 has not come in 0.15 s");

    let door = Door::here(Token::draw().expect("random")).expect("listens");
    let ended = TeamError::Lost { rank: 1, ranks: 2, what: "it ended".to_owned() };
    assert_eq!(door.meet(&meeting(0, 2), || Err(ended.clone())).expect_err("it ended"), ended);

    // A port where nothing listens, and one where something does that never answers.
    let closed = TcpListener::bind("127.0.0.1:0").expect("listens").local_addr().expect("has one");
    let mute = TcpListener::bind("127.0.0.1:0").expect("listens");
    let mute_at = mute.local_addr().expect("has one");
    let to = |address: String| Rendezvous { addresses: vec![address], token: Token::draw().expect("random") };
    let error = to(closed.to_string()).join(&hasty(1, 2)).expect_err("blocked").to_string();
    assert!(error.contains("rank 1 waited for 0.15 s: rank 0 cannot be reached: 127.0.0.1"), "{error}");
    spawn(move || {
        while let Ok((mut stream, _)) = mute.accept() {
            stream.write_all(b"SSH-2.0-OpenSSH_9\r\n").expect("writes");
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    let error = to(mute_at.to_string()).join(&hasty(1, 2)).expect_err("another program").to_string();
    assert!(error.contains("no rank of `sami`"), "{error}");

    let error = to(closed.to_string()).join(&hasty(1, 40)).expect_err("too many").to_string();
    assert!(error.contains("16 at most"), "{error}");
}

#[test]
fn tasks_of_a_step_find_each_other_through_a_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_owned();
    // What an earlier start of the step has left leads nowhere.
    let old = Rendezvous { addresses: vec!["127.0.0.1:1".to_owned()], token: Token::draw().expect("random") };
    old.write(&path.join("ranks-7-0-.json")).expect("writes");
    let tasks: Vec<_> = [2, 0, 1]
        .into_iter()
        .map(|rank| {
            let path = path.clone();
            spawn(move || {
                let task = Task { rank, ranks: 3, step: "7.0.".to_owned() };
                let mut team = task.meet(&path, &meeting(rank, 3)).expect("meets");
                let all = team.gather(vec![rank as u8]).expect("all");
                team.leave();
                all
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.join().expect("no panic"), [[0], [1], [2]]);
    }
    assert_eq!(fs_err::read_dir(&path).expect("is there").count(), 0, "the token does not stay behind");
}

#[test]
fn where_ranks_meet_is_for_their_own_user() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("ranks.json");
    let rendezvous = Rendezvous { addresses: vec!["a:1".to_owned()], token: Token::draw().expect("random") };
    assert_eq!(Rendezvous::read(&path).expect("no fault"), None);
    rendezvous.write(&path).expect("writes");
    rendezvous.write(&path).expect("writes over it");
    assert_eq!(Rendezvous::read(&path).expect("reads"), Some(rendezvous));
    assert_eq!(fs_err::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
}
