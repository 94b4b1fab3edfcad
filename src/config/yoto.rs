//! The case without a file: the variables of the Python predecessor.

use super::document::{Node, Table, Value};
use super::environment::Environment;
use super::problem::{Origin, Problem};

const CLIENT_ID: &str = "YOTO_CLIENT_ID";
const TOKEN_FILE: &str = "YOTO_REFRESH_TOKEN_FILE";
const CRON: &str = "TOKEN_REFRESH_CRON";
const HOURS: &str = "TOKEN_REFRESH_INTERVAL_HOURS";

/// Whether the variables make a configuration.
pub fn is_configured(env: &Environment) -> bool {
    env.filled(CLIENT_ID).is_some()
}

/// Whether one of them is set, if only by somebody who misspelled another.
pub fn is_mentioned(env: &Environment) -> bool {
    let all = [CLIENT_ID, TOKEN_FILE, CRON, HOURS];
    all.iter().any(|name| env.filled(name).is_some())
}

/// The configuration that the variables mean; none without `YOTO_CLIENT_ID`. An empty
/// variable counts as unset, as `docker compose` passes those on.
pub fn document(
    env: &Environment,
    out: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) -> Option<Node> {
    let from = |name: &str| Origin::Variable(name.into());
    let text = |name: &str, text: &str| Node::text(&from(name), text);
    let here = from(CLIENT_ID);
    let table = |keys: Vec<(&str, Node)>| {
        let keys: Table = keys
            .into_iter()
            .map(|(key, node)| (key.to_owned(), Box::new(node)))
            .collect();
        Node::new(&here, Value::Table(keys))
    };

    let client_id = env.filled(CLIENT_ID)?;
    let provider = table(vec![
        ("preset", text(CLIENT_ID, "yoto")),
        ("client_id", text(CLIENT_ID, client_id)),
    ]);
    let token_file = env.filled(TOKEN_FILE).unwrap_or(".yoto_refresh_token");
    let credential = table(vec![
        ("provider", text(CLIENT_ID, "yoto")),
        ("refresh_token_file", text(TOKEN_FILE, token_file)),
        ("write_back", Node::new(&here, Value::Boolean(true))),
    ]);
    let mut job = vec![("kind", text(CLIENT_ID, "token_refresh"))];
    match (env.filled(CRON), env.filled(HOURS)) {
        (Some(cron), hours) => {
            job.push(("schedule", text(CRON, cron)));
            if hours.is_some() {
                let message = format!("{CRON} is set too and wins; unset {HOURS}");
                warnings.push(Problem::new(&from(HOURS), HOURS, message));
            }
        }
        (None, Some(hours)) => match hours.parse::<u32>() {
            Ok(n) if (1..=23).contains(&n) => {
                let cron = format!("0 */{n} * * *");
                let message = format!("an old name; set {CRON}=\"{cron}\" instead");
                warnings.push(Problem::new(&from(HOURS), HOURS, message));
                job.push(("schedule", text(HOURS, &cron)));
            }
            _ => {
                let message = format!(
                    "{hours:?} is not a whole number of hours from 1 to 23; correct it, or set \
                     {CRON}, for example to \"0 0 * * *\" for once a day"
                );
                out.push(Problem::new(&from(HOURS), HOURS, message));
            }
        },
        (None, None) => {}
    }
    Some(table(vec![
        ("providers", table(vec![("yoto", provider)])),
        ("credentials", table(vec![("yoto", credential)])),
        ("jobs", table(vec![("token-refresh", table(job))])),
    ]))
}

/// Warnings for variables that only count without a file, where there is one that does not
/// name them.
pub fn ignored(text: &str, env: &Environment) -> Vec<Problem> {
    [CRON, HOURS]
        .into_iter()
        .filter(|name| env.filled(name).is_some() && !text.contains(&format!("${{{name}}}")))
        .map(|name| {
            let message = "is not read where there is a configuration file; write schedule = \
                           \"…\" in [jobs.NAME] and unset it";
            Problem::new(&Origin::Variable(name.into()), name, message)
        })
        .collect()
}
