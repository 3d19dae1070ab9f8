//! CPU time of a process, from /proc: user and system time of all its threads.

use std::time::Duration;

/// Fields of `/proc/PID/stat` after the command's name, counted from 0: utime and stime (proc(5), fields 14 and 15).
const UTIME_INDEX: usize = 11;

/// Returns the CPU time that a process has used, or that this one has; `None` where /proc does not say.
pub fn cpu_time(pid: Option<u32>) -> Option<Duration> {
    let who = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let stat = std::fs::read_to_string(format!("/proc/{who}/stat")).ok()?;
    let ticks = ticks(&stat)?;
    let per_second = rustix::param::clock_ticks_per_second();
    Some(Duration::from_micros(ticks.saturating_mul(1_000_000).checked_div(per_second)?))
}

/// The command's name may hold spaces and parentheses: fields count from the last one.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(UTIME_INDEX);
    let user: u64 = times.next()?.parse().ok()?;
    let system: u64 = times.next()?.parse().ok()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_system_time_are_added_whatever_the_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 12 30 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_has_a_cpu_time_and_no_process_has_none() {
        assert!(cpu_time(None).is_some());
        assert_eq!(cpu_time(Some(u32::MAX)), None);
    }
}
