//! What must fit together: names, references, schedules, kinds, and keys that need or
//! exclude each other.

use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use url::{Host, Url};

use crate::schedule::Schedule;

use super::document::{self, Node, Table, Value, join};
use super::problem::{Origin, Problem, cure};
use super::shape::{self, Check, Types};
use super::{ClientAuth, Config, Credential, Grant, Kind, Kinds, Provider};
use crate::name::Name;

/// Form fields that the grants write themselves (RFC 6749 sections 4 and 6).
const RESERVED: [&str; 5] = [
    "grant_type",
    "refresh_token",
    "client_id",
    "client_secret",
    "scope",
];

/// The rules over a tree whose shape was checked; problems of the shape are in `out`.
pub struct Rules<'a> {
    pub root: &'a Node,
    pub types: &'a Types,
    pub kinds: &'a Kinds,
    pub out: &'a mut Vec<Problem>,
    pub warnings: &'a mut Vec<Problem>,
}

impl Rules<'_> {
    pub fn check(&mut self) {
        self.names();
        self.store();
        for (name, node) in entries(self.root, "providers") {
            self.provider(&join("providers", name), node);
        }
        for (name, node) in entries(self.root, "credentials") {
            self.credential(&join("credentials", name), node);
        }
        self.shared_files();
        for (name, node) in entries(self.root, "jobs") {
            self.job(&join("jobs", name), node);
        }
    }

    fn problem(&mut self, node: &Node, place: String, text: impl Into<String>) {
        self.out.push(Problem::new(&node.origin, place, text));
    }

    fn names(&mut self) {
        for section in ["providers", "credentials", "jobs"] {
            for (name, node) in entries(self.root, section) {
                if let Err(error) = name.parse::<Name>() {
                    let better = name.trim().to_lowercase().replace([' ', '/'], "-");
                    let cure = match better.parse::<Name>() {
                        Ok(better) => format!("write {}", join(section, better.as_str())),
                        Err(_) => "write another".to_owned(),
                    };
                    let text = format!("{name:?} is not a name: {error}; {cure}");
                    self.problem(node, join(section, name), text);
                }
            }
        }
    }

    fn store(&mut self) {
        let Some(store) = self.root.get("store") else {
            return;
        };
        if let (Some(_), Some(file)) = (store.get("key"), store.get("key_file")) {
            let text = "store.key is set too; remove one of them";
            self.problem(file, "store.key_file".to_owned(), text);
        }
    }

    /// The entry as its type, when nothing is wrong inside it so far.
    fn sound<T: DeserializeOwned>(&self, place: &str, node: &Node) -> Option<T> {
        let sound = !self.out.iter().any(|problem| problem.is_within(place));
        sound.then(|| T::deserialize(node).ok()).flatten()
    }

    fn params(&mut self, place: &str, node: &Node) {
        let params = node.get("params").and_then(Node::as_table);
        for (key, value) in params.into_iter().flatten() {
            if RESERVED.contains(&key.as_str()) {
                let cure = match key.as_str() {
                    "scope" => "use scopes of the credential",
                    "client_id" | "client_secret" => "use the provider's key of that name",
                    _ => "remove it",
                };
                let text = format!("is written by the grant itself; {cure}");
                self.problem(value, join(&join(place, "params"), key), text);
            }
        }
    }

    fn provider(&mut self, place: &str, node: &Node) {
        self.params(place, node);
        let allow_http = matches!(
            node.get("allow_http").map(|node| &node.value),
            Some(Value::Boolean(true))
        );
        for key in ["issuer", "token_url"] {
            let Some(url) = node.get(key) else { continue };
            let Some(Ok(parsed)) = url.as_text().map(Url::parse) else {
                continue;
            };
            if parsed.scheme() != "http" || is_loopback(&parsed) {
                continue;
            }
            if allow_http {
                let text = "tokens and secrets travel in clear text; write https:// and remove \
                            allow_http";
                self.warnings
                    .push(Problem::new(&url.origin, join(place, key), text));
            } else {
                let text = "http:// sends tokens and secrets in clear text; write https:// (in a \
                            closed test network: allow_http = true)";
                self.problem(url, join(place, key), text);
            }
        }
        let Some(provider) = self.sound::<Provider>(place, node) else {
            return;
        };
        if provider.issuer.is_none() && provider.token_url.is_none() {
            let text = "no endpoint is known; set issuer (endpoints are discovered), token_url, \
                        or preset";
            self.problem(node, place.to_owned(), text);
        }
        let auth = node.get("client_auth").unwrap_or(node);
        match (provider.client_auth, provider.client_secret.is_some()) {
            (Some(ClientAuth::None), true) => {
                let text = "\"none\" sends no secret, but there is a client_secret; write \
                            \"basic\" or \"post\", or remove the secret";
                // A preset says "none": then the secret is what the user wrote.
                let origin = match &auth.origin {
                    Origin::Default => node.get("client_secret").unwrap_or(node),
                    _ => auth,
                };
                self.problem(origin, join(place, "client_auth"), text);
            }
            (Some(ClientAuth::Basic | ClientAuth::Post), false) => {
                let text = "there is no secret to send; set client_secret_file or client_secret";
                self.problem(auth, join(place, "client_auth"), text);
            }
            _ => {}
        }
    }

    fn credential(&mut self, place: &str, node: &Node) {
        self.params(place, node);
        if let Some(reference) = node.get("provider").filter(|node| node.as_text().is_some()) {
            let wanted = reference.as_text().unwrap_or_default();
            let mut known = entries(self.root, "providers").map(|(name, _)| name.as_str());
            if !known.any(|name| name == wanted) {
                let known = entries(self.root, "providers").map(|(name, _)| name.as_str());
                let text = match known.clone().next() {
                    None => format!("{} is not defined; add [providers.NAME]", shown(reference)),
                    Some(_) => {
                        format!(
                            "{} is not defined; {}",
                            shown(reference),
                            cure(wanted, known)
                        )
                    }
                };
                self.problem(reference, join(place, "provider"), text);
            }
        }
        let scopes = node.get("scopes").map(Node::as_list).unwrap_or_default();
        for (i, scope) in scopes.iter().enumerate() {
            if scope
                .as_text()
                .is_some_and(|s| s.is_empty() || s.contains(char::is_whitespace))
            {
                let text = format!(
                    "{} is not one scope; write one text for each, such as [\"profile\", \
                     \"offline_access\"]",
                    shown(scope)
                );
                self.problem(scope, format!("{place}.scopes[{i}]"), text);
            }
        }
        let sinks = node.get("sinks").map(Node::as_list).unwrap_or_default();
        let kinds = self.kinds;
        for (i, sink) in sinks.iter().enumerate() {
            self.kind(
                &format!("{place}.sinks[{i}]"),
                sink,
                &kinds.sinks,
                &["kind"],
            );
        }
        if let Some(credential) = self.sound::<Credential>(place, node) {
            self.grant(place, node, &credential);
        }
    }

    fn grant(&mut self, place: &str, node: &Node, credential: &Credential) {
        let at = |key: &str| node.get(key).unwrap_or(node);
        if credential.grant == Grant::ClientCredentials {
            for key in ["refresh_token_file", "write_back"] {
                if node.get(key).is_some() {
                    let text = "client_credentials has no refresh token (RFC 6749 section 4.4.3); \
                                remove this key, or the grant";
                    self.problem(at(key), join(place, key), text);
                }
            }
            let name = credential.provider.as_str();
            let provider = self.root.get("providers").and_then(|all| all.get(name));
            let provider =
                provider.and_then(|node| self.sound::<Provider>(&join("providers", name), node));
            if provider.is_some_and(|provider| provider.client_secret.is_none()) {
                let text = format!(
                    "client_credentials needs a client secret (RFC 6749 section 4.4); set \
                     client_secret_file in [{}]",
                    join("providers", name)
                );
                self.problem(at("grant"), join(place, "grant"), text);
            }
        } else if credential.write_back && credential.refresh_token_file.is_none() {
            let text = "there is no file to keep current; set refresh_token_file";
            self.problem(at("write_back"), join(place, "write_back"), text);
        }
    }

    /// Two credentials with one refresh token spend it twice, and the server revokes both.
    fn shared_files(&mut self) {
        let mut seen: Vec<(&str, String)> = Vec::new();
        for (name, node) in entries(self.root, "credentials") {
            let Some(file) = node.get("refresh_token_file") else {
                continue;
            };
            let Some(path) = file.as_text() else { continue };
            let place = join("credentials", name);
            match seen.iter().find(|(other, _)| *other == path) {
                Some((_, other)) => {
                    let text = format!(
                        "{other} has the same file; a refresh token works once, so give each \
                         credential its own"
                    );
                    self.problem(file, join(&place, "refresh_token_file"), text);
                }
                None => seen.push((path, place)),
            }
        }
    }

    fn job(&mut self, place: &str, node: &Node) {
        // A wrong zone is reported by itself; the expression is still worth checking.
        let zone = node.get_text("timezone").and_then(|zone| zone.parse().ok());
        if let Some(schedule) = node.get("schedule")
            && let Some(text) = schedule.as_text()
            && let Err(error) = Schedule::parse(text, zone.unwrap_or(chrono_tz::Tz::UTC))
        {
            let message = match &schedule.value {
                // The error repeats the expression, which here came from a variable.
                Value::Text { shown, .. } if shown != text => format!(
                    "schedule \"{shown}\" is not a cron expression; write 5 fields (minute \
                     first) or 6 (seconds first)"
                ),
                _ => error.to_string(),
            };
            self.problem(schedule, place.to_owned(), message);
        }
        let own = self
            .types
            .section("jobs")
            .map(shape::keys)
            .unwrap_or_default();
        let kinds = self.kinds;
        self.kind(place, node, &kinds.jobs, &own);
    }

    /// Checks the kind of a job or sink, and the keys that belong to the kind.
    fn kind(&mut self, place: &str, node: &Node, kinds: &[Kind], own: &[&str]) {
        let (Some(table), Some(written)) = (node.as_table(), node.get("kind")) else {
            return;
        };
        let Some(name) = written.as_text() else {
            return;
        };
        let Some(kind) = kinds.iter().find(|kind| kind.name == name) else {
            let cure = cure(name, kinds.iter().map(|kind| kind.name));
            let text = format!("{} is not a kind; {cure}", shown(written));
            return self.problem(written, join(place, "kind"), text);
        };
        let settings: Table = table
            .iter()
            .filter(|(key, _)| !own.contains(&key.as_str()))
            .map(|(key, node)| (key.clone(), node.clone()))
            .collect();
        let mut schema = (kind.schema)();
        schema.insert("additionalProperties".to_owned(), Json::Bool(false));
        let before = self.out.len();
        Check {
            types: self.types,
            root: schema.as_value(),
            out: self.out,
        }
        .table(node, &settings, schema.as_value(), place, own);
        if self.out.len() == before
            && let Err(text) = (kind.check)(&document::to_toml(&settings))
        {
            self.problem(node, place.to_owned(), text);
        }
    }
}

/// What works, but not as the user may think.
pub fn warn(config: &Config, root: &Node, warnings: &mut Vec<Problem>) {
    let listen = config.server.listen;
    if !listen.ip().is_loopback() {
        let node = root
            .get("server")
            .and_then(|server| server.get("listen"))
            .unwrap_or(root);
        let text = format!(
            "{listen} is not loopback and there is no authentication: anyone who can reach it \
             can read metrics; listen on 127.0.0.1, or let only trusted networks through"
        );
        warnings.push(Problem::new(&node.origin, "server.listen", text));
    }
    if config.credentials.is_empty() {
        let text = "none is configured, so there is no token to keep alive; add [credentials.NAME]";
        warnings.push(Problem::new(&Origin::Default, "credentials", text));
    }
}

fn entries<'a>(
    root: &'a Node,
    section: &str,
) -> impl Iterator<Item = (&'a String, &'a Node)> + Clone {
    root.get(section)
        .and_then(Node::as_table)
        .into_iter()
        .flatten()
        .map(|(name, node)| (name, &**node))
}

/// The text of a node as errors may print it.
fn shown(node: &Node) -> String {
    match &node.value {
        Value::Text { shown, .. } => format!("\"{shown}\""),
        _ => "this".to_owned(),
    }
}

/// RFC 8252 section 7.3: only loopback needs no TLS.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}
