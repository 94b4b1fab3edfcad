//! What must hold for a [`Log`], whatever happened. Pure, so that it can be shown to find what it
//! is for.

use std::{collections::BTreeMap, time::Duration};

use super::log::{Answer, At, Log, Memory, Request, Span, StaleRead};

/// A request is on its way, and a machine at work, for so long: no rule is finer.
const SLACK: Duration = Duration::from_millis(500);
/// An answer is saved, or a failure noted, this soon after it came. A kill before that may undo
/// what the service knew.
const NOTED_WITHIN: Duration = Duration::from_secs(2);
/// No token is refreshed before this share of its life: two thirds less the jitter.
const EARLIEST_SHARE: f64 = 0.633;
/// No request is repeated sooner.
const SHORTEST_RETRY: Duration = Duration::from_secs(1);
/// When nothing stands in the way any more, an expired token is replaced within this: the request's
/// time limit of 3 s, the two looks at a provider that is being tried, and the delivery.
const RECOVERY: Duration = Duration::from_secs(10);
/// After a pause all requests under way may fail together, which closes their provider once.
const AFTER_PAUSE: Duration = Duration::from_secs(10);
/// So many failures in a row close a provider. One less than the service's own number, since it may
/// have heard of answers in another order than they were given.
const FAILURES_TO_CLOSE: u32 = 4;

/// Every breach of a rule, with the lines of the log that show it.
pub fn violations(log: &Log) -> Vec<String> {
    let mut families: BTreeMap<usize, Vec<&Request>> = BTreeMap::new();
    for request in &log.requests {
        families.entry(request.family).or_default().push(request);
    }
    let refused = |request: &&Request| request.answer == Answer::Refused;
    let refused = log.requests.iter().filter(refused);
    let refused = refused.map(|request| format!("a spent or dead token was sent: {request:?}"));
    let pairs = families.values().flat_map(|requests| requests.windows(2));
    let pairs = pairs.filter_map(|pair| {
        let why = pair_is_wrong(pair[0], pair[1], log)?;
        Some(format!("{why}:\n  {:?}\n  {:?}", pair[0], pair[1]))
    });
    let obstacles = Obstacles::of(log);
    let stale = log.stale_reads.iter();
    let stale = stale.filter(|read| !obstacles.excuse(read));
    let stale = stale.map(|read| {
        let last = families.get(&read.family).and_then(|of| {
            let before = |request: &&&Request| request.at <= read.at;
            of.iter().rfind(before)
        });
        let dead_for = read.at.saturating_sub(read.died);
        format!(
            "a reader was served a dead token, dead for {dead_for:?}: {read:?}\n  last {last:?}"
        )
    });
    let grew = |memory: &&Memory| memory.end > memory.warm * 1.3 + 8e6;
    let grew = log.memory.iter().filter(grew);
    let grew = grew.map(|memory| format!("memory grew: {memory:?}"));
    refused.chain(pairs).chain(stale).chain(grew).collect()
}

/// Every credential that does not hold the newest refresh token of its family.
pub fn lost(newest: &[String], revoked: &[usize], stored: &BTreeMap<usize, String>) -> Vec<String> {
    let of = |(family, newest): (usize, &String)| {
        let stored = stored.get(&family);
        let kept = stored == Some(newest) && !revoked.contains(&family);
        (!kept).then(|| format!("lost: {newest} was issued last, {stored:?} is stored"))
    };
    newest.iter().enumerate().filter_map(of).collect()
}

/// Why the second of two requests of one family, in a row, should not have been made as it was.
fn pair_is_wrong(before: &Request, after: &Request, log: &Log) -> Option<String> {
    let jumped = log
        .jumps
        .iter()
        .any(|jump| before.at <= *jump + SLACK && *jump <= after.at);
    let undone = log
        .down
        .iter()
        .any(|down| before.at <= down.from + SLACK && down.from <= before.ended + NOTED_WITHIN);
    let delayed = log
        .paused
        .iter()
        .any(|paused| before.at <= paused.to + SLACK && paused.from <= before.ended + NOTED_WITHIN);
    let unsure = undone || delayed;
    let replay = before.token == after.token;
    let earliest = match &before.answer {
        Answer::Refused => return Some("asked again after a refusal".into()),
        Answer::Tokens { .. } if replay && unsure => return None,
        Answer::Tokens { .. } if replay => return Some("a refresh token was spent twice".into()),
        Answer::Tokens { next } if *next != after.token => {
            return Some("another refresh token was sent than was given".into());
        }
        Answer::Fault { .. } if !replay => {
            return Some("another refresh token was sent after a failure".into());
        }
        Answer::Tokens { .. } => before.at + before.life.mul_f64(EARLIEST_SHARE),
        Answer::Fault { .. } if unsure => return None,
        Answer::Fault { wait, .. } => before.ended + wait.unwrap_or_default().max(SHORTEST_RETRY),
    };
    // What was set forward makes a token look old and a wait look over, once.
    let early = after.at + SLACK < earliest && !jumped;
    early.then(|| format!("a request {:?} too early", earliest - after.at))
}

/// When no refresh could succeed. While one of these stands in the way, and for [`RECOVERY`] after
/// it, a reader may find an expired token; at no other time.
struct Obstacles {
    /// For everybody.
    all: Vec<Span>,
    providers: BTreeMap<&'static str, Vec<Span>>,
    families: BTreeMap<usize, Vec<Span>>,
}

impl Obstacles {
    fn of(log: &Log) -> Self {
        let paused = log.paused.iter().map(|paused| Span {
            to: paused.to + AFTER_PAUSE,
            ..*paused
        });
        let mut this = Self {
            all: log.down.iter().copied().chain(paused).collect(),
            providers: BTreeMap::new(),
            families: BTreeMap::new(),
        };
        let mut in_order: Vec<&Request> = log.requests.iter().collect();
        in_order.sort_by_key(|request| request.ended);
        let mut of_provider: BTreeMap<&str, u32> = BTreeMap::new();
        let mut of_family: BTreeMap<usize, u32> = BTreeMap::new();
        for request in in_order {
            let in_a_row = of_provider.entry(request.provider).or_default();
            let own = of_family.entry(request.family).or_default();
            let Answer::Fault { wait, .. } = request.answer else {
                (*in_a_row, *own) = (0, 0);
                continue;
            };
            (*in_a_row, *own) = (*in_a_row + 1, *own + 1);
            let wait = wait.unwrap_or_default();
            // The retry policy waits no longer than this; the breaker no longer than a minute.
            let retry = doubled(10, *own - 1, 300).max(wait);
            let closed = match in_a_row.checked_sub(FAILURES_TO_CLOSE) {
                Some(more) => doubled(10, more, 60).max(wait),
                None => wait,
            };
            let until = |wait| Span {
                from: request.at,
                to: request.ended + wait,
            };
            let family = this.families.entry(request.family).or_default();
            family.push(until(retry));
            if !closed.is_zero() {
                let provider = this.providers.entry(request.provider).or_default();
                provider.push(until(closed));
            }
        }
        this
    }

    fn excuse(&self, read: &StaleRead) -> bool {
        let provider = self.providers.get(read.provider).into_iter().flatten();
        let family = self.families.get(&read.family).into_iter().flatten();
        let mut obstacles = self.all.iter().chain(provider).chain(family);
        obstacles.any(|obstacle| (obstacle.from..=obstacle.to + RECOVERY).contains(&read.at))
    }
}

fn doubled(first: u64, times: u32, most: u64) -> At {
    Duration::from_secs((first << times.min(8)).min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> At {
        Duration::from_secs_f64(seconds)
    }

    fn span(from: f64, to: f64) -> Span {
        Span {
            from: at(from),
            to: at(to),
        }
    }

    /// A request of the one family, whose tokens live for 60 s, that spends token number `spent`.
    fn request(seconds: f64, spent: u32, answer: Answer) -> Request {
        Request {
            at: at(seconds),
            ended: at(seconds + 0.1),
            provider: "acme",
            family: 0,
            life: at(60.0),
            token: spent.to_string(),
            answer,
        }
    }

    fn tokens(next: u32) -> Answer {
        Answer::Tokens {
            next: next.to_string(),
        }
    }

    fn fault(wait: Option<f64>) -> Answer {
        Answer::Fault {
            what: "a fault",
            wait: wait.map(at),
        }
    }

    fn log(requests: &[Request]) -> Log {
        Log {
            requests: requests.to_vec(),
            ..Log::default()
        }
    }

    fn expect_one(log: &Log, what: &str) {
        let found = violations(log);
        assert!(found.len() == 1 && found[0].contains(what), "{found:#?}");
    }

    fn expect_none(log: &Log) {
        assert_eq!(violations(log), Vec::<String>::new());
    }

    #[test]
    fn a_life_without_trouble() {
        let times = [0.0, 38.5, 78.0];
        let requests: Vec<Request> = (0..)
            .zip(times)
            .map(|(number, time)| request(time, number, tokens(number + 1)))
            .collect();
        expect_none(&log(&requests));
    }

    #[test]
    fn a_token_that_is_spent_twice() {
        let twice = log(&[request(0.0, 0, tokens(1)), request(40.0, 0, tokens(1))]);
        expect_one(&twice, "spent twice");
        // Unless the answer was not noted: killed in time, or paused longer than it may take.
        let mut killed = twice.clone();
        killed.down.push(span(1.0, 2.0));
        expect_none(&killed);
        let mut paused = twice.clone();
        paused.paused.push(span(0.05, 6.0));
        expect_none(&paused);
        let mut killed_later = twice.clone();
        killed_later.down.push(span(5.0, 6.0));
        expect_one(&killed_later, "spent twice");
    }

    #[test]
    fn a_token_that_the_server_did_not_give() {
        let other = log(&[request(0.0, 0, tokens(1)), request(40.0, 2, tokens(3))]);
        expect_one(&other, "than was given");
        let after_failure = log(&[request(0.0, 0, fault(None)), request(9.0, 1, tokens(2))]);
        expect_one(&after_failure, "after a failure");
    }

    #[test]
    fn a_refusal() {
        expect_one(&log(&[request(0.0, 0, Answer::Refused)]), "was sent");
        let again = [request(0.0, 0, Answer::Refused), request(9.0, 0, tokens(1))];
        assert_eq!(violations(&log(&again)).len(), 2);
    }

    #[test]
    fn a_request_before_two_thirds_of_the_life() {
        let early = log(&[request(0.0, 0, tokens(1)), request(37.0, 1, tokens(2))]);
        expect_one(&early, "too early");
        let mut jumped = early.clone();
        jumped.jumps.push(at(36.0));
        expect_none(&jumped);
        let mut jumped_before = early;
        jumped_before.jumps.push(at(-0.0));
        jumped_before.requests[0].at = at(2.0);
        expect_one(&jumped_before, "too early");
    }

    #[test]
    fn a_retry_that_does_not_wait() {
        let second_later = log(&[request(0.0, 0, fault(None)), request(1.2, 0, tokens(1))]);
        expect_none(&second_later);
        let at_once = log(&[request(0.0, 0, fault(None)), request(0.2, 0, tokens(1))]);
        expect_one(&at_once, "too early");
        let too_soon = log(&[
            request(0.0, 0, fault(Some(5.0))),
            request(4.0, 0, tokens(1)),
        ]);
        expect_one(&too_soon, "too early");
        let mut killed = too_soon.clone();
        killed.down.push(span(1.0, 2.0));
        expect_none(&killed);
        let mut killed_later = too_soon;
        killed_later.down.push(span(3.0, 3.5));
        expect_one(&killed_later, "too early");
    }

    fn stale(seconds: f64) -> Log {
        let mut log = log(&[request(0.0, 0, tokens(1))]);
        log.stale_reads.push(StaleRead {
            at: at(seconds),
            provider: "acme",
            family: 0,
            died: at(60.0),
        });
        log
    }

    #[test]
    fn a_dead_token_that_nothing_excuses() {
        expect_one(&stale(61.0), "dead for 1s");
        let excused_until = |excuse: &dyn Fn(&mut Log), last: f64| {
            for (seconds, found) in [(last - 0.1, 0), (last + 0.1, 1)] {
                let mut log = stale(seconds);
                excuse(&mut log);
                assert_eq!(violations(&log).len(), found, "{seconds}");
            }
        };
        excused_until(&|log| log.down.push(span(58.0, 65.0)), 75.0);
        excused_until(&|log| log.paused.push(span(58.0, 65.0)), 85.0);
        let failed = |at, wait| request(at, 1, fault(wait));
        excused_until(&|log| log.requests.push(failed(58.9, None)), 79.0);
        excused_until(&|log| log.requests.push(failed(58.9, Some(20.0))), 89.0);
        // Others close the provider for everybody.
        let others = |family, wait| Request {
            family,
            ..request(58.9, 0, fault(wait))
        };
        excused_until(&|log| log.requests.push(others(1, Some(9.0))), 78.0);
        excused_until(
            &|log| {
                log.requests
                    .extend((1..=4).map(|family| others(family, None)))
            },
            79.0,
        );
        let mut three = stale(61.0);
        three
            .requests
            .extend((1..=3).map(|family| others(family, None)));
        expect_one(&three, "dead token");
    }

    #[test]
    fn memory_that_grows() {
        let mut log = Log::default();
        for (end, found) in [(60e6, 0), (90e6, 1)] {
            log.memory = vec![Memory { warm: 50e6, end }];
            assert_eq!(violations(&log).len(), found);
        }
    }

    #[test]
    fn a_credential_that_is_lost() {
        let newest = ["a".to_owned(), "b".to_owned()];
        let stored = |second: &str| [(0, "a".to_owned()), (1, second.to_owned())].into();
        assert!(lost(&newest, &[], &stored("b")).is_empty());
        assert_eq!(lost(&newest, &[], &stored("older")).len(), 1);
        assert_eq!(lost(&newest, &[0], &stored("b")).len(), 1);
        assert_eq!(lost(&newest, &[], &BTreeMap::new()).len(), 2);
    }
}
