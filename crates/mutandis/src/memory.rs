//! What this process asks of the system: the memory it has used, and what becomes of freed memory
//! and of writes beyond a limit.

/// The most memory that was resident at once, in bytes, the mapped parts of the checkpoint
/// included; `None` where the system does not say.
pub fn peak() -> Option<u64> {
    high_water().or_else(from_usage)
}

/// Linux's own mark of this program. `getrusage` counts in the program that started this one:
/// the mark outlives `exec`.
fn high_water() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Gives freed memory back, and begins to count the most anew, where the system can do both.
pub fn restart_peak() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: asks the allocator to give back pages that nobody uses.
        unsafe { libc::malloc_trim(0) };
        // Without the right to do so, the mark stays: the most of the whole process.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
    }
}

#[cfg(unix)]
fn from_usage() -> Option<u64> {
    // SAFETY: all zeros is a valid `rusage`, which is plain numbers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a place of the right type that lives through the call.
    let done = unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    // Kibibytes everywhere but on Apple's systems.
    let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
    let peak = u64::try_from(usage.ru_maxrss).ok()?;
    (done == 0 && peak > 0).then_some(peak * unit)
}

#[cfg(not(unix))]
fn from_usage() -> Option<u64> {
    None
}

/// Keeps freed memory for the next pass instead of giving it back page by page. A pass allocates
/// and frees the same large buffers again and again; getting fresh pages from the system each
/// time costs a tenth of it. To be called before other threads run.
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // glibc maps what is larger than a limit, 32 MiB at most, afresh each time, and threads
        // other than the first have heaps of 64 MiB, which they give back: neither is used.
        for (option, value) in
            [(libc::M_MMAP_MAX, 0), (libc::M_ARENA_MAX, 1), (libc::M_TRIM_THRESHOLD, libc::c_int::MAX)]
        {
            // SAFETY: sets an option of the allocator.
            unsafe { libc::mallopt(option, value) };
        }
    }
}

/// Makes a write beyond a size limit fail like one on a full disk, with an error that is told,
/// instead of ending the process.
pub fn survive_size_limits() {
    #[cfg(unix)]
    // SAFETY: ignoring a signal needs nothing but its number.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

#[cfg(all(test, target_os = "linux"))]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    #[test]
    fn what_is_touched_counts() {
        // More than the tests beside this one take.
        const MORE: usize = 256 << 20;
        let before = super::peak().unwrap();
        let touched = std::hint::black_box(vec![1u8; MORE]);
        assert!(super::peak().unwrap() >= before.max(MORE as u64), "{} bytes were touched", touched.len());
        assert!(super::from_usage().unwrap() >= MORE as u64);
        drop(touched);
        super::restart_peak();
        if std::fs::write("/proc/self/clear_refs", "5").is_ok() {
            assert!(super::peak().unwrap() < before + (MORE / 2) as u64, "what was given back still counts");
        }
    }
}
