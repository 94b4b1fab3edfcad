//! The environment: `.env` under the real one, and `PERENNIAL_…` over the file.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value as Json;

use super::document::{self, Node, Table, Value, join};
use super::problem::{Errors, Origin, Problem, nearest};
use super::shape::{self, Types};

/// Variables by name. It may hold secrets, so it has no `Debug`.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The value of a variable; an empty one counts as set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The value of a variable; an empty one counts as unset.
    pub(super) fn filled(&self, name: &str) -> Option<&str> {
        self.get(name)
            .map(str::trim)
            .filter(|value| !value.is_empty())
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Self(
            pairs
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        )
    }
}

/// The environment of this process over `.env` of the working directory. The process
/// environment is not changed. Variables that are not UTF-8 are left out.
///
/// # Errors
/// When `.env` exists and cannot be read or parsed.
pub fn environment() -> Result<Environment, Errors> {
    let mut variables = match std::fs::read_to_string(Path::new(".env")) {
        Ok(text) => dotenv(&text)?,
        Err(error) if error.kind() == ErrorKind::NotFound => BTreeMap::new(),
        Err(error) => {
            let text = format!("cannot be read: {error}; correct it or remove the file");
            return Err(Problem::new(&Origin::Default, ".env", text).into());
        }
    };
    variables.extend(
        std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }),
    );
    Ok(Environment(variables))
}

/// The variables of a `.env` text. An error names the line and never its content.
fn dotenv(text: &str) -> Result<BTreeMap<String, String>, Problem> {
    dotenvy::from_read_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| {
            let line = match &error {
                dotenvy::Error::LineParse(content, _) => {
                    let content = content.lines().next().unwrap_or_default();
                    text.lines()
                        .position(|line| line.trim_end() == content.trim_end())
                        .unwrap_or(0)
                }
                _ => 0,
            };
            let origin = Origin::File {
                name: ".env".into(),
                offset: line,
                line: line + 1,
            };
            let text = "not of the form NAME=value; put a value with spaces or special characters \
                    in single quotes";
            Problem::new(&origin, "", text)
        })
}

const PREFIX: &str = "PERENNIAL_";

/// Variables with our prefix that other parts read.
const OTHERS: &[&str] = &[
    "PERENNIAL_LOG",
    "PERENNIAL_LOG_FORMAT",
    super::load::FILE_VARIABLE,
    #[cfg(debug_assertions)]
    crate::crash::VARIABLE,
];

/// Short names of keys.
const SHORT: [(&str, &[&str]); 2] = [
    ("PERENNIAL_KEY", &["store", "key"]),
    ("PERENNIAL_KEY_FILE", &["store", "key_file"]),
];

/// Kubernetes and Docker links set these for a service that is called `perennial`.
fn is_service_link(name: &str) -> bool {
    let rest = name.strip_prefix(PREFIX).unwrap_or_default();
    rest == "PORT"
        || rest.starts_with("PORT_")
        || rest == "SERVICE_HOST"
        || rest.starts_with("SERVICE_PORT")
}

/// Whether a variable defines a provider, a credential or a job.
pub fn defines_something(env: &Environment) -> bool {
    ["PROVIDERS__", "CREDENTIALS__", "JOBS__"]
        .iter()
        .any(|section| {
            env.0.keys().any(|name| {
                name.strip_prefix(PREFIX)
                    .is_some_and(|r| r.starts_with(section))
            })
        })
}

/// Whether a variable is about more than how to listen and to log.
pub fn says_more_than_how_to_serve(env: &Environment) -> bool {
    ours(env).any(|(name, _)| !name.starts_with("PERENNIAL_SERVER__"))
}

/// The variables that mean keys of the configuration.
fn ours(env: &Environment) -> impl Iterator<Item = (&String, &String)> {
    env.0.iter().filter(|(name, _)| {
        name.starts_with(PREFIX) && !OTHERS.contains(&name.as_str()) && !is_service_link(name)
    })
}

/// Puts `PERENNIAL_<SECTION>__<KEY>` and `PERENNIAL_<SECTION>__<NAME>__<KEY>` over the
/// tree. A text is taken as it is, everything else is written as in TOML.
pub fn override_with(root: &mut Node, env: &Environment, types: &Types, out: &mut Vec<Problem>) {
    for (name, value) in ours(env) {
        let origin = Origin::Variable(name.as_str().into());
        let target = match SHORT.iter().find(|(short, _)| short == name) {
            Some((_, path)) => Ok(path.iter().map(|&key| key.to_owned()).collect()),
            None => locate(name, root, types),
        };
        match target {
            Ok(path) => set(root, &path, &origin, value, types, out),
            Err(text) => out.push(Problem::new(&origin, name.as_str(), text)),
        }
    }
}

/// The path of keys that a variable means.
fn locate(variable: &str, root: &Node, types: &Types) -> Result<Vec<String>, String> {
    let unknown = || {
        let known = candidates(root, types);
        // Without the prefix, which would make everything look near.
        let known = known.iter().filter_map(|name| name.strip_prefix(PREFIX));
        let cure = match nearest(variable.strip_prefix(PREFIX).unwrap_or(variable), known) {
            Some(near) => format!("did you mean {PREFIX}{near}?"),
            None => "unset it, or write PERENNIAL_<SECTION>__<KEY>, \
                     for example PERENNIAL_SERVER__LISTEN"
                .to_owned(),
        };
        format!("unknown variable; {cure}")
    };
    let parts: Vec<&str> = variable
        .strip_prefix(PREFIX)
        .unwrap_or(variable)
        .split("__")
        .collect();
    let (section, rest) = parts.split_first().ok_or_else(unknown)?;
    let section = section.to_lowercase();
    let schema = types.section(&section).ok_or_else(unknown)?;
    let mut path = vec![section.clone()];
    let mut keys = rest;
    if types.is_named(&section) {
        let (name, rest) = rest
            .split_first()
            .filter(|(_, r)| !r.is_empty())
            .ok_or_else(unknown)?;
        path.push(existing(root, &section, name)?);
        keys = rest;
    }
    let (key, inner) = keys.split_first().ok_or_else(unknown)?;
    let key = key.to_lowercase();
    let property = shape::property(schema, &key);
    // A job's other keys belong to its kind and are checked there.
    if property.is_none() && !shape::is_open(schema) {
        return Err(unknown());
    }
    path.push(key);
    match inner {
        [] => Ok(path),
        // The keys of a table such as `params` are free.
        [free] if property.is_some_and(shape::is_map) => {
            path.push(free.to_lowercase());
            Ok(path)
        }
        _ => Err(unknown()),
    }
}

/// How a name is written in the name of a variable.
fn variable_name(name: &str) -> String {
    name.to_uppercase().replace(['-', '.'], "_")
}

/// The name in the section that a variable means: one that is there, else a new one.
fn existing(root: &Node, section: &str, written: &str) -> Result<String, String> {
    let names = root.get(section).and_then(Node::as_table);
    let mut same = names
        .iter()
        .flat_map(|table| table.keys())
        .filter(|name| variable_name(name) == written.to_uppercase());
    match (same.next(), same.next()) {
        (Some(one), Some(other)) => Err(format!(
            "means both {} and {}; set it in the file",
            join(section, one),
            join(section, other)
        )),
        (Some(one), None) => Ok(one.clone()),
        (None, _) => Ok(written.to_lowercase()),
    }
}

/// Every variable that would be understood.
fn candidates(root: &Node, types: &Types) -> Vec<String> {
    let mut all: Vec<String> = OTHERS.iter().map(|&name| name.to_owned()).collect();
    all.extend(SHORT.map(|(short, _)| short.to_owned()));
    for section in types.sections() {
        let keys = types.section(section).map(shape::keys).unwrap_or_default();
        let prefix = format!("{PREFIX}{}__", section.to_uppercase());
        let names: Vec<String> = match types.is_named(section) {
            false => vec![String::new()],
            true => root
                .get(section)
                .and_then(Node::as_table)
                .iter()
                .flat_map(|table| table.keys())
                .map(|name| format!("{}__", variable_name(name)))
                .collect(),
        };
        for name in &names {
            all.extend(
                keys.iter()
                    .map(|key| format!("{prefix}{name}{}", key.to_uppercase())),
            );
        }
    }
    all
}

fn set(
    root: &mut Node,
    path: &[String],
    origin: &Origin,
    value: &str,
    types: &Types,
    out: &mut Vec<Problem>,
) {
    let Some((last, parents)) = path.split_last() else {
        return;
    };
    let mut table = root.as_table_mut();
    let mut place = String::new();
    for key in parents {
        place = join(&place, key);
        let next = table.and_then(|table: &mut Table| {
            table
                .entry(key.clone())
                .or_insert_with(|| Box::new(Node::table(origin)))
                .as_table_mut()
        });
        table = next;
    }
    // Something that should be a table is none: the shape check reports that.
    let Some(table) = table else { return };
    let schema = types.at(path);
    let text_wanted = schema.is_none_or(|schema| shape::accepts(schema, "string"));
    let node = match text_wanted {
        true if schema.is_none() => {
            document::parse_value(origin, value).unwrap_or_else(|| Node::text(origin, value))
        }
        true => Node::text(origin, value),
        false => match document::parse_value(origin, value) {
            Some(node) => node,
            None => {
                let wanted = schema.map_or_else(String::new, |s: &Json| shape::wanted(s));
                let text = format!("cannot be read; write {wanted}");
                out.push(Problem::new(origin, join(&place, last), text));
                return;
            }
        },
    };
    let secret = schema.is_some_and(shape::is_secret);
    let node = match node.value {
        Value::Text { text, .. } if secret => Node::new(
            origin,
            Value::Text {
                text,
                shown: String::new(),
            },
        ),
        _ => node,
    };
    table.insert(last.clone(), Box::new(node));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dotenv_errors_name_the_line_only() {
        let problem = dotenv("A=1\nSECRET=hunter 2 \"x\nB=2\n").unwrap_err();
        assert_eq!(
            problem.to_string(),
            ".env:2: not of the form NAME=value; put a value with spaces or special characters \
             in single quotes"
        );
        let good = dotenv("# comment\nA=1\nexport B='two words'\n").unwrap();
        assert_eq!(good.get("B").map(String::as_str), Some("two words"));
    }

    #[test]
    fn service_links_are_left_alone() {
        for name in [
            "PERENNIAL_PORT",
            "PERENNIAL_PORT_9464_TCP_ADDR",
            "PERENNIAL_SERVICE_PORT_HTTP",
        ] {
            assert!(is_service_link(name), "{name}");
        }
        assert!(!is_service_link("PERENNIAL_SERVER__LISTEN"));
    }
}
