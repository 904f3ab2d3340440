//! What this process has held of memory at most, attempt by attempt.
//!
//! The kernel keeps one mark for the life of a process. It is set anew where something of its own is to be measured; what it stood at
//! until then is kept here.

use std::sync::atomic::{AtomicU64, Ordering};

use super::memory;

/// What the mark stood at before it was last set anew, since the attempt began.
static BEFORE: AtomicU64 = AtomicU64::new(0);
/// In its place: the mark could not be set anew, and says nothing of this attempt.
const UNKNOWN: u64 = u64::MAX;

/// Bytes that loading a model's weights took at most, those that stay among them; `None` where that cannot be told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load(Option<u64>);

/// Begins to measure for another attempt in this process, and gives back what it held of its GPU, `cpu` or `cuda:N`, and does not use.
pub fn begin(device: &str) {
    memory::begin_anew(device);
    BEFORE.store(if set_anew() { 0 } else { UNKNOWN }, Ordering::Relaxed);
}

/// Bytes of the machine's memory that this process has held at most since the attempt began.
pub fn peak() -> Option<u64> {
    let before = Some(BEFORE.load(Ordering::Relaxed)).filter(|before| *before != UNKNOWN)?;
    status("VmHWM:").map(|mark| mark.max(before))
}

/// Loads weights, and measures what that takes.
pub fn loading<T, E>(load: impl FnOnce() -> Result<T, E>) -> Result<(T, Load), E> {
    let before = peak();
    let is_anew = before.is_some_and(|before| {
        // Before the mark is set anew, so that at no moment less is known.
        BEFORE.store(before, Ordering::Relaxed);
        set_anew()
    });
    let held = status("VmRSS:").filter(|_| is_anew);
    let loaded = load()?;
    let took = held.and_then(|held| Some(status("VmHWM:")?.saturating_sub(held)));
    Ok((loaded, Load(took)))
}

/// Weights are used that were there when the attempt began: it counts as if they had been loaded, for the next one like it may have to.
pub fn as_if(load: Load) {
    let before = BEFORE.load(Ordering::Relaxed);
    if let Load(Some(took)) = load
        && before != UNKNOWN
    {
        BEFORE.store(before.max(took), Ordering::Relaxed);
    }
}

/// Sets the kernel's mark to what is held now. Returns whether it could.
fn set_anew() -> bool {
    fs_err::OpenOptions::new().write(true).open("/proc/self/clear_refs").is_ok_and(|mut file| {
        use std::io::Write;
        file.write_all(b"5").is_ok()
    })
}

/// Bytes by a line of what the kernel says of this process.
fn status(name: &str) -> Option<u64> {
    let text = fs_err::read_to_string("/proc/self/status").ok()?;
    memory::field(&text, name).map(|kibibytes| kibibytes << 10)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// The mark is the process's: what other tests hold beside this one would be measured, too. It tells, in MiB, what was held in
    /// turn.
    #[test]
    #[ignore = "a part of the test of what attempts are told"]
    fn in_a_process_of_its_own() {
        let big = || std::hint::black_box(vec![1u8; 256 << 20]);
        let mib = |bytes: Option<u64>| bytes.map_or(-1, |bytes| (bytes >> 20).cast_signed());
        drop(big());
        let first = peak();
        begin("cpu");
        let second = peak();
        let ((), load) = loading(|| {
            drop(big());
            Ok::<(), ()>(())
        })
        .expect("it loads");
        let with_load = peak();
        begin("cpu");
        let third = peak();
        as_if(load);
        let told = [first, second, load.0, with_load, third, peak()].map(mib);
        let _ = std::io::Write::write_all(&mut std::io::stdout(), format!("\ntold:{told:?}\n").as_bytes());
    }

    #[test]
    fn an_attempt_is_not_told_of_what_the_one_before_held() {
        let program = std::env::current_exe().expect("this program");
        let test = "lm::peaks::tests::in_a_process_of_its_own";
        let output =
            Command::new(program).args([test, "--exact", "--ignored", "--nocapture"]).output().expect("starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let told = text.lines().find_map(|line| line.strip_prefix("told:")).unwrap_or_else(|| panic!("{text}"));
        let told: Vec<i64> = serde_json::from_str(told).expect("numbers");
        let [first, second, took, with_load, third, as_if] = told[..] else { panic!("{told:?}") };
        assert!(first >= 256, "{told:?}");
        // Where the mark cannot be set anew nothing is told of an attempt that is not the first.
        if second == -1 {
            assert_eq!((took, with_load, third, as_if), (-1, -1, -1, -1));
            return;
        }
        assert!(second < 128 && third < 128, "{told:?}");
        assert!(took >= 250 && with_load >= 256, "{told:?}");
        assert!(as_if >= took, "weights that are kept count as loaded: {told:?}");
    }
}
