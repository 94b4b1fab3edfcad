//! Places on the path of a refresh at which a debug build ends itself as `kill -9` would, so that
//! `tests/crashes.rs` can count what a crash costs at each of them.
//!
//! `PERENNIAL_CRASH_AT=saved:3` ends the process when it comes to that step for the third time.
//! A release build has neither the variable, which it refuses as unknown, nor the code: there
//! [`point`] is a `const fn`, which can read no environment and end nothing, and it is empty.

/// A moment of a refresh, in the order of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing is written or sent yet.
    Claiming,
    /// A group of changes is in the database, but not committed: the claim, the new tokens, how a
    /// failed attempt was settled, or a run.
    Committing,
    /// Lease and intent are durable, and nothing is sent.
    Claimed,
    /// The server has begun to answer, so it has done what it does; nothing is read yet.
    Answering,
    /// The new tokens are in memory.
    Answered,
    /// The new tokens are durable, and nobody knows.
    Saved,
    /// Metrics and the status show them.
    Published,
    /// A sink is about to get the access token.
    Delivering,
    /// A file is written beside the one that it replaces.
    Drafted,
    /// A sink has the access token.
    Delivered,
    /// The file that a refresh token came from is about to get the new one.
    WritingBack,
    /// That file has it.
    WrittenBack,
    /// The attempt failed, and nothing says so yet.
    Settling,
    /// The failure is durable, and nobody knows.
    Settled,
}

/// The variable that names a step.
#[cfg(debug_assertions)]
pub const VARIABLE: &str = "PERENNIAL_CRASH_AT";

/// Ends the process here if the environment says so.
#[cfg(debug_assertions)]
pub fn point(step: Step) {
    armed::pass(step);
}

/// Nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn point(_: Step) {}

/// Does not compile if that does anything.
#[cfg(not(debug_assertions))]
const _: () = point(Step::Claiming);

#[cfg(debug_assertions)]
mod armed {
    use std::sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    };

    use rustix::process::{Signal, getpid, kill_process};

    use super::{Step, VARIABLE};

    /// The step as the variable names it, and how many times it is still passed unharmed.
    struct Armed {
        step: String,
        passes: AtomicUsize,
    }

    static ARMED: LazyLock<Option<Armed>> = LazyLock::new(|| {
        let value = std::env::var(VARIABLE).ok()?;
        let (step, time) = value.split_once(':').unwrap_or((&value, "1"));
        let time: usize = time.parse().expect("STEP or STEP:TIME, counted from 1");
        Some(Armed {
            step: step.to_owned(),
            passes: AtomicUsize::new(time - 1),
        })
    });

    pub(super) fn pass(step: Step) {
        let Some(armed) = &*ARMED else { return };
        if armed.step != format!("{step:?}").to_lowercase() {
            return;
        }
        let one_less = |passes: usize| passes.checked_sub(1);
        let harmless = armed
            .passes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        if harmless.is_err() {
            // No destructor runs and nothing is flushed, but for this line.
            eprintln!("{VARIABLE}: {step:?}");
            kill_process(getpid(), Signal::KILL).expect("a process may end itself");
        }
    }
}
