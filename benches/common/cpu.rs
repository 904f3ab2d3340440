//! CPU time, for benchmarks.

/// CPU seconds so far, user and system, of `libc::RUSAGE_SELF`, or of the `libc::RUSAGE_CHILDREN` that ended.
pub(crate) fn seconds(who: libc::c_int) -> f64 {
    // SAFETY: `usage` is a plain structure that the call fills in.
    #[expect(unsafe_code, reason = "the standard library has no call for CPU time")]
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(who, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
