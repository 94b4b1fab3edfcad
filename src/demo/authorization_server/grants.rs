//! Refresh tokens that rotate: what is current, what is spent, what is revoked. Pure
//! but for the map itself; time and new tokens come from the caller.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::secret::{Fingerprint, Secret};

/// How many spent tokens are remembered over all grants. With a rotation every second
/// a reuse is still recognised after hours, and the memory stays near a megabyte.
const REMEMBERED_SPENT: usize = 10_000;

/// The tokens of one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub access: Secret,
    pub refresh: Secret,
}

/// What came of presenting a refresh token.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Exchange {
    /// The token was current; it is spent now and the new pair counts.
    Rotated,
    /// The token was spent a moment ago: the same pair again, this old.
    Replayed(Pair, Duration),
    /// `invalid_grant`.
    Refused(Refusal),
}

/// Why a refresh token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Never issued here, or forgotten.
    Unknown,
    /// Issued to another client (RFC 6749 section 5.2).
    OtherClient,
    /// Spent and presented again: the whole family has just been revoked
    /// (RFC 9700 section 4.14.2).
    Reused,
    /// Of a family that was revoked before.
    Revoked,
}

#[derive(Default)]
pub(super) struct Grants {
    families: Vec<Family>,
    /// The family of each known refresh token, current and spent.
    family_of: HashMap<Fingerprint, usize>,
    /// Spent tokens, oldest first.
    spent: VecDeque<Fingerprint>,
}

struct Family {
    client_id: String,
    /// When the person logged in.
    began: Instant,
    current: Fingerprint,
    last_rotation: Option<Rotation>,
    revoked: bool,
}

struct Rotation {
    spent: Fingerprint,
    at: Instant,
    answer: Pair,
}

impl Grants {
    /// Starts a family with its first refresh token.
    pub(super) fn start(&mut self, client_id: &str, first: &Secret, now: Instant) {
        let current = first.fingerprint();
        self.family_of.insert(current, self.families.len());
        self.families.push(Family {
            client_id: client_id.to_owned(),
            began: now,
            current,
            last_rotation: None,
            revoked: false,
        });
    }

    /// How long ago the login was that a refresh token, current or spent, goes back to.
    pub(super) fn age(&self, token: &Secret, now: Instant) -> Option<Duration> {
        let index = *self.family_of.get(&token.fingerprint())?;
        Some(now.saturating_duration_since(self.families[index].began))
    }

    /// Ends the login that a refresh token, current or spent, goes back to.
    pub(super) fn revoke(&mut self, token: &Secret) {
        if let Some(index) = self.family_of.get(&token.fingerprint()) {
            self.families[*index].revoked = true;
        }
    }

    /// Spends `presented` for `new`, or says why not.
    ///
    /// Only the token spent last can be replayed: whoever has used its successor has
    /// received the answer, so an older token is a reuse at any time.
    pub(super) fn exchange(
        &mut self,
        client_id: &str,
        presented: &Secret,
        new: &Pair,
        now: Instant,
        replay_window: Duration,
    ) -> Exchange {
        let presented = presented.fingerprint();
        let Some(&index) = self.family_of.get(&presented) else {
            return Exchange::Refused(Refusal::Unknown);
        };
        let family = &mut self.families[index];
        if family.client_id != client_id {
            return Exchange::Refused(Refusal::OtherClient);
        }
        if family.revoked {
            return Exchange::Refused(Refusal::Revoked);
        }
        if family.current != presented {
            if let Some(last) = &family.last_rotation {
                let age = now.saturating_duration_since(last.at);
                if last.spent == presented && age < replay_window {
                    return Exchange::Replayed(last.answer.clone(), age);
                }
            }
            family.revoked = true;
            family.last_rotation = None;
            return Exchange::Refused(Refusal::Reused);
        }

        family.current = new.refresh.fingerprint();
        family.last_rotation = Some(Rotation {
            spent: presented,
            at: now,
            answer: new.clone(),
        });
        self.family_of.insert(family.current, index);
        self.spent.push_back(presented);
        if self.spent.len() > REMEMBERED_SPENT
            && let Some(oldest) = self.spent.pop_front()
        {
            self.family_of.remove(&oldest);
        }
        Exchange::Rotated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(30);

    struct Bench {
        grants: Grants,
        start: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let mut grants = Grants::default();
            let start = Instant::now();
            grants.start("player", &Secret::new("r0"), start);
            Self { grants, start }
        }

        fn present(&mut self, token: &str, new: &str, seconds: u64) -> Exchange {
            self.grants.exchange(
                "player",
                &Secret::new(token),
                &pair(new),
                self.start + Duration::from_secs(seconds),
                WINDOW,
            )
        }
    }

    fn pair(refresh: &str) -> Pair {
        Pair {
            access: Secret::new(format!("access of {refresh}")),
            refresh: Secret::new(refresh),
        }
    }

    #[test]
    fn a_chain_of_rotations() {
        let mut bench = Bench::new();
        assert_eq!(bench.present("r0", "r1", 0), Exchange::Rotated);
        assert_eq!(bench.present("r1", "r2", 40), Exchange::Rotated);
        assert_eq!(bench.present("r2", "r3", 80), Exchange::Rotated);
    }

    #[test]
    fn a_replay_within_the_window_gets_the_same_pair_and_changes_nothing() {
        let mut bench = Bench::new();
        bench.present("r0", "r1", 0);
        for seconds in [0, 29] {
            assert_eq!(
                bench.present("r0", "unused", seconds),
                Exchange::Replayed(pair("r1"), Duration::from_secs(seconds))
            );
        }
        assert_eq!(bench.present("r1", "r2", 31), Exchange::Rotated);
    }

    #[test]
    fn a_reuse_after_the_window_revokes_the_family() {
        let mut bench = Bench::new();
        bench.present("r0", "r1", 0);
        let refused = Exchange::Refused;
        assert_eq!(bench.present("r0", "x", 30), refused(Refusal::Reused));
        assert_eq!(bench.present("r0", "x", 31), refused(Refusal::Revoked));
        assert_eq!(bench.present("r1", "x", 31), refused(Refusal::Revoked));
    }

    #[test]
    fn an_older_token_is_a_reuse_even_within_the_window() {
        let mut bench = Bench::new();
        bench.present("r0", "r1", 0);
        bench.present("r1", "r2", 1);
        assert_eq!(
            bench.present("r0", "x", 2),
            Exchange::Refused(Refusal::Reused)
        );
    }

    #[test]
    fn families_are_apart() {
        let mut bench = Bench::new();
        bench
            .grants
            .start("player", &Secret::new("s0"), bench.start);
        bench.present("r0", "r1", 0);
        bench.present("r0", "x", 99);
        assert_eq!(bench.present("s0", "s1", 99), Exchange::Rotated);
    }

    #[test]
    fn strangers_are_refused_and_harm_nobody() {
        let mut bench = Bench::new();
        assert_eq!(
            bench.present("never issued", "x", 0),
            Exchange::Refused(Refusal::Unknown)
        );
        let other = bench.grants.exchange(
            "someone else",
            &Secret::new("r0"),
            &pair("x"),
            bench.start,
            WINDOW,
        );
        assert_eq!(other, Exchange::Refused(Refusal::OtherClient));
        assert_eq!(bench.present("r0", "r1", 0), Exchange::Rotated);
    }

    #[test]
    fn memory_is_bounded_and_long() {
        let mut bench = Bench::new();
        let rotations = REMEMBERED_SPENT + 50;
        for n in 0..rotations {
            let (old, new) = (format!("r{n}"), format!("r{}", n + 1));
            assert_eq!(bench.present(&old, &new, 0), Exchange::Rotated);
        }
        assert_eq!(bench.grants.family_of.len(), REMEMBERED_SPENT + 1);
        assert_eq!(
            bench.present("r49", "x", 0),
            Exchange::Refused(Refusal::Unknown)
        );
        assert_eq!(
            bench.present("r50", "x", 0),
            Exchange::Refused(Refusal::Reused)
        );
    }
}
