//! Waiting for a condition, never for a fixed time.

use std::time::{Duration, Instant};

/// Short enough that a test does not notice, long enough that waiting costs no CPU.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// Looks again and again until `look` finds something, and returns it. `Err` says what it saw
/// instead.
///
/// Panics with `what` and the last `Err` when nothing was found within `deadline`. The last look
/// is after the deadline, so that a slow machine gets at least two looks.
pub fn until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        let over = started.elapsed() >= deadline;
        match look() {
            Ok(found) => return found,
            Err(seen) => assert!(
                !over,
                "waited {deadline:?} in vain for {what}; last: {seen}"
            ),
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
}
