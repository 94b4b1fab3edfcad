//! What an authorization server with rotation remembers: families of tokens. A refresh token is
//! spent once and gives the next; spent again within the replay window it gives the same next one;
//! spent again after that, or when its successor was spent too, it kills the whole family.
//!
//! Pure: the time is given, as the time since any origin.

use std::time::Duration;

/// All families of one server.
pub struct TokenFamilies {
    replay_window: Duration,
    families: Vec<Family>,
}

struct Family {
    life: Duration,
    /// The generation of the refresh token that was not spent yet.
    newest: usize,
    /// When the one before it was spent for the first time.
    rotated_at: Duration,
    /// When each access token dies.
    ends: Vec<Duration>,
    revoked: bool,
}

/// The answer to a refresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub access_token: String,
    pub refresh_token: String,
    /// How long the access token lives.
    pub life: Duration,
    /// The refresh token had been spent before.
    pub replay: bool,
}

/// A refresh token that gives nothing: `invalid_grant`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

impl TokenFamilies {
    /// None yet.
    pub fn new(replay_window: Duration) -> Self {
        Self {
            replay_window,
            families: Vec::new(),
        }
    }

    /// Begins a family whose access tokens live so long, and returns its first refresh token.
    pub fn begin(&mut self, life: Duration) -> String {
        self.families.push(Family {
            life,
            newest: 0,
            rotated_at: Duration::ZERO,
            ends: Vec::new(),
            revoked: false,
        });
        refresh_token(self.families.len() - 1, 0)
    }

    /// Spends a refresh token.
    pub fn refresh(&mut self, token: &str, now: Duration) -> Result<Grant, Refused> {
        let (number, generation) = parse("refresh", token).ok_or(Refused)?;
        let family = self.families.get_mut(number).ok_or(Refused)?;
        let replay = generation + 1 == family.newest;
        let in_time = now.saturating_sub(family.rotated_at) <= self.replay_window;
        if family.revoked || generation > family.newest {
            return Err(Refused);
        }
        if generation < family.newest && !(replay && in_time) {
            family.revoked = true;
            return Err(Refused);
        }
        if !replay {
            family.newest += 1;
            family.rotated_at = now;
        }
        family.ends.push(now + family.life);
        Ok(Grant {
            access_token: format!("access-{number}-{}", family.ends.len() - 1),
            refresh_token: refresh_token(number, family.newest),
            life: family.life,
            replay,
        })
    }

    /// When an access token dies; none for one that was never issued. A revoked family has none
    /// that live.
    pub fn end_of(&self, access_token: &str) -> Option<Duration> {
        let (number, access) = parse("access", access_token)?;
        let family = self.families.get(number)?;
        let end = *family.ends.get(access)?;
        Some(if family.revoked { Duration::ZERO } else { end })
    }

    /// The refresh token of each family that was issued last.
    pub fn newest(&self) -> Vec<String> {
        let newest = |(number, family): (usize, &Family)| refresh_token(number, family.newest);
        self.families.iter().enumerate().map(newest).collect()
    }

    /// The families that were revoked.
    pub fn revoked(&self) -> Vec<usize> {
        let families = self.families.iter().enumerate();
        let revoked = families.filter(|(_, family)| family.revoked);
        revoked.map(|(number, _)| number).collect()
    }
}

/// The family that a refresh token or an access token belongs to.
pub fn family_of(token: &str) -> Option<usize> {
    let (family, _) = parse("refresh", token).or_else(|| parse("access", token))?;
    Some(family)
}

fn refresh_token(family: usize, generation: usize) -> String {
    format!("refresh-{family}-{generation}")
}

fn parse(kind: &str, token: &str) -> Option<(usize, usize)> {
    let numbers = token.strip_prefix(kind)?.strip_prefix('-')?;
    let (family, number) = numbers.split_once('-')?;
    Some((family.parse().ok()?, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn one_family() -> (TokenFamilies, String) {
        let mut families = TokenFamilies::new(at(10));
        let first = families.begin(LIFE);
        (families, first)
    }

    #[test]
    fn each_refresh_rotates() {
        let (mut families, first) = one_family();
        let second = families.refresh(&first, at(0)).unwrap();
        assert!(!second.replay && second.refresh_token != first);
        let third = families.refresh(&second.refresh_token, at(40)).unwrap();
        assert_eq!(families.newest(), [third.refresh_token]);
        assert_eq!(families.end_of(&second.access_token), Some(at(60)));
        assert_eq!(families.end_of(&third.access_token), Some(at(100)));
        assert_eq!(family_of(&third.access_token), Some(0));
    }

    #[test]
    fn a_replay_within_the_window_gives_the_same_successor() {
        let (mut families, first) = one_family();
        let lost = families.refresh(&first, at(0)).unwrap();
        let found = families.refresh(&first, at(10)).unwrap();
        assert!(found.replay);
        assert_eq!(found.refresh_token, lost.refresh_token);
        assert_ne!(found.access_token, lost.access_token);
        assert!(families.refresh(&found.refresh_token, at(11)).is_ok());
    }

    #[test]
    fn a_replay_after_the_window_kills_the_family() {
        let (mut families, first) = one_family();
        let next = families.refresh(&first, at(0)).unwrap();
        assert_eq!(families.refresh(&first, at(11)), Err(Refused));
        assert_eq!(families.refresh(&next.refresh_token, at(12)), Err(Refused));
        assert_eq!(families.end_of(&next.access_token), Some(at(0)));
        assert_eq!(families.revoked(), [0]);
    }

    #[test]
    fn a_replay_after_its_successor_was_spent_kills_the_family() {
        let (mut families, first) = one_family();
        let next = families.refresh(&first, at(0)).unwrap();
        families.refresh(&next.refresh_token, at(1)).unwrap();
        assert_eq!(families.refresh(&first, at(2)), Err(Refused));
        assert_eq!(families.revoked(), [0]);
    }

    #[test]
    fn a_token_that_was_never_issued_harms_nobody() {
        let (mut families, first) = one_family();
        for unknown in ["", "refresh-0-7", "refresh-9-0", "access-0-0", "refresh-0"] {
            assert_eq!(families.refresh(unknown, at(0)), Err(Refused), "{unknown}");
        }
        assert_eq!(families.end_of("access-0-0"), None);
        assert!(families.refresh(&first, at(0)).is_ok());
    }
}
