//! From the texts to the validated [`Config`]: every error at once.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::document::{self, Node, Value, join};
use super::environment::{self, Environment};
use super::problem::{Errors, Origin, Problem, cure, sort};
use super::rules::{self, Rules};
use super::shape::{Check, Types};
use super::{Config, Kinds, Server, yoto};

/// The configuration file that is read from the working directory when none is given.
const FILE: &str = "perennial.toml";

/// The variable that names another one, which need not exist either: an image sets it once, for
/// all commands.
pub(super) const FILE_VARIABLE: &str = "PERENNIAL_CONFIG";

/// The configuration file that is read when none is given, if there is one.
pub fn default_file(env: &Environment) -> &str {
    env.filled(FILE_VARIABLE).unwrap_or(FILE)
}

/// The providers known by name.
const PRESETS: [(&str, &str); 1] = [("yoto", include_str!("../providers/yoto.toml"))];

/// A configuration without errors.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What was configured, defaults filled in and secrets read.
    pub config: Config,
    /// What works, but not as the user may think. To be logged, or printed by `check`.
    pub warnings: Vec<Problem>,
    /// The file that was read; none where everything came from the environment.
    pub file: Option<PathBuf>,
}

/// What [`load_or_nothing`] found.
pub enum Found {
    /// A configuration.
    Configuration(Box<Loaded>),
    /// No file, and no variable that names a provider, a credential or a job. What the
    /// environment says of the server alone counts all the same.
    Nothing(Server),
}

/// All that a configuration is made from, so that [`resolve`] is a function of it.
pub struct Input<'a> {
    /// The name and the text of the configuration file.
    pub file: Option<(&'a str, &'a str)>,
    /// The environment; see [`environment()`](environment::environment).
    pub env: &'a Environment,
    /// Reads the file of a secret.
    pub read: &'a dyn Fn(&Path) -> io::Result<String>,
}

/// Reads `file`, or the [`default_file`] if there is one, then `.env` and the environment.
/// `kinds` are the plugins that the configuration may name.
///
/// # Errors
/// All of them at once, in the order of the file; only the first where the TOML itself is
/// broken.
pub fn load(file: Option<&Path>, kinds: &Kinds) -> Result<Loaded, Errors> {
    with_input(file, |input| resolve(input, kinds))
}

/// [`load`] for who can do without a configuration: a blank file counts as none. One that is
/// broken, or a file that was given and does not exist, is no such case; nor is a store without a
/// configuration, or a variable that somebody set for one: that is a mistake.
///
/// # Errors
/// As [`load`].
pub fn load_or_nothing(file: Option<&Path>, kinds: &Kinds) -> Result<Found, Errors> {
    with_input(file, |input| {
        let is_blank = input.file.is_none_or(|(_, text)| text.trim().is_empty());
        if !is_blank || yoto::is_configured(input.env) || environment::defines_something(input.env)
        {
            return Ok(Found::Configuration(Box::new(resolve(input, kinds)?)));
        }
        // As for an empty file, so that the other variables are checked as always.
        let name = default_file(input.env);
        let as_empty = Input {
            file: Some((name, "")),
            ..*input
        };
        let config = resolve(&as_empty, kinds)?.config;
        let store = config.store.sqlite_path();
        if store.exists() {
            let text = format!(
                "nothing is configured: there is no {name} here, but {} is; bring the \
                 configuration of that store back, or move the store away",
                store.display()
            );
            return Err(Problem::new(&Origin::Default, "", text).into());
        }
        if yoto::is_mentioned(input.env) || environment::says_more_than_how_to_serve(input.env) {
            return Err(nothing_configured(input.env));
        }
        Ok(Found::Nothing(config.server))
    })
}

fn with_input<T>(
    file: Option<&Path>,
    work: impl FnOnce(&Input<'_>) -> Result<T, Errors>,
) -> Result<T, Errors> {
    let env = environment::environment()?;
    let path = file.unwrap_or(Path::new(default_file(&env)));
    let name = path.display().to_string();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        // A link to nothing was meant to be one to something.
        Err(error)
            if error.kind() == ErrorKind::NotFound && file.is_none() && !path.is_symlink() =>
        {
            None
        }
        Err(error) => {
            let text = format!("cannot be read: {error}; name an existing file with --config");
            return Err(Problem::new(&Origin::Default, name, text).into());
        }
    };
    let read = |path: &Path| std::fs::read_to_string(path);
    let input = Input {
        file: text.as_deref().map(|text| (name.as_str(), text)),
        env: &env,
        read: &read,
    };
    work(&input)
}

/// [`load`] without the process and the file system around it.
///
/// # Errors
/// As [`load`].
pub fn resolve(input: &Input<'_>, kinds: &Kinds) -> Result<Loaded, Errors> {
    let types = Types::new();
    let mut out = Vec::new();
    let mut warnings = Vec::new();

    let mut root = match input.file {
        Some((name, text)) => {
            warnings.extend(yoto::ignored(text, input.env));
            document::parse(name, text)?
        }
        None => without_file(input.env, &mut out, &mut warnings)?,
    };
    add_default_job(&mut root);
    environment::override_with(&mut root, input.env, &types, &mut out);
    document::interpolate(&mut root, "", input.env, &mut out);
    // A text whose variable is missing would be called wrong a second time below.
    let already_said = out.len();
    apply_presets(&mut root, &mut out);
    Check {
        types: &types,
        root: &serde_json::Value::Null,
        out: &mut out,
    }
    .document(&root);
    read_secrets(&mut root, input.read, &mut out);
    Rules {
        root: &root,
        types: &types,
        kinds,
        out: &mut out,
        warnings: &mut warnings,
    }
    .check();

    let repeated = out.split_off(already_said);
    let places: Vec<String> = out.iter().map(|problem| problem.place.clone()).collect();
    out.extend(
        repeated
            .into_iter()
            .filter(|problem| !places.contains(&problem.place)),
    );
    if !out.is_empty() {
        return Err(Errors::new(out));
    }
    // The checks cover all that can fail here; serde's own words may repeat a secret.
    let config = Config::deserialize(&root).map_err(|_| {
        let text = "cannot be read, and no check says why; please report this with your file, \
                    without its secrets";
        Errors::from(Problem::new(&root.origin, "", text))
    })?;
    rules::warn(&config, &root, &mut warnings);
    sort(&mut warnings);
    Ok(Loaded {
        config,
        warnings,
        file: input.file.map(|(name, _)| name.into()),
    })
}

fn without_file(
    env: &Environment,
    out: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) -> Result<Node, Errors> {
    if let Some(root) = yoto::document(env, out, warnings) {
        return Ok(root);
    }
    if environment::defines_something(env) {
        return Ok(Node::table(&Origin::Default));
    }
    Err(nothing_configured(env))
}

fn nothing_configured(env: &Environment) -> Errors {
    let file = default_file(env);
    let text = format!(
        "nothing is configured: there is no {file} here, and YOTO_CLIENT_ID is not set; \
         try \"perennial demo\", begin a file with \"perennial config > {file}\", or set \
         YOTO_CLIENT_ID"
    );
    Problem::new(&Origin::Default, "", text).into()
}

/// The job that exists when no job is configured: tokens live by the refresh policy alone.
fn add_default_job(root: &mut Node) {
    let Some(sections) = root.as_table_mut() else {
        return;
    };
    let jobs = sections
        .entry("jobs".to_owned())
        .or_insert_with(|| Box::new(Node::table(&Origin::Default)));
    if let Some(jobs) = jobs.as_table_mut().filter(|jobs| jobs.is_empty()) {
        let mut job = Node::table(&Origin::Default);
        let kind = Node::text(&Origin::Default, "token_refresh");
        job.as_table_mut()
            .map(|job| job.insert("kind".to_owned(), Box::new(kind)));
        jobs.insert("token-refresh".to_owned(), Box::new(job));
    }
}

/// Fills each provider with the keys of its preset that the user left out.
fn apply_presets(root: &mut Node, out: &mut Vec<Problem>) {
    for (place, provider) in entries_mut(root, "providers") {
        let Some(name) = provider
            .get("preset")
            .filter(|node| node.as_text().is_some())
        else {
            continue;
        };
        let text = name.as_text().unwrap_or_default();
        let Some((file, defaults)) = PRESETS.iter().find(|(known, _)| *known == text) else {
            let cure = cure(text, PRESETS.map(|(known, _)| known));
            let text = format!("there is no preset of this name; {cure}");
            out.push(Problem::new(&name.origin, join(&place, "preset"), text));
            continue;
        };
        let mut defaults = match document::parse(file, defaults) {
            Ok(defaults) => defaults,
            Err(problem) => {
                out.push(problem);
                continue;
            }
        };
        document::relocate(&mut defaults, &Origin::Default);
        // Another issuer is another server: the preset's endpoint is not its own.
        if provider.get("issuer").is_some() {
            defaults
                .as_table_mut()
                .map(|table| table.remove("token_url"));
        }
        fill(provider, defaults);
    }
}

/// Adds the keys that are missing, in tables inside too.
fn fill(node: &mut Node, defaults: Node) {
    if let (Value::Table(table), Value::Table(defaults)) = (&mut node.value, defaults.value) {
        for (key, default) in defaults {
            match table.get_mut(&key) {
                Some(given) => fill(given, *default),
                None => {
                    table.insert(key, default);
                }
            }
        }
    }
}

/// Reads `client_secret_file` into `client_secret`. The key of the store is not read here:
/// the store generates it at the first start.
fn read_secrets(
    root: &mut Node,
    read: &dyn Fn(&Path) -> io::Result<String>,
    out: &mut Vec<Problem>,
) {
    for (place, provider) in entries_mut(root, "providers") {
        let Some(file) = provider.get("client_secret_file") else {
            continue;
        };
        let Some(path) = file.as_text().filter(|path| !path.is_empty()) else {
            continue;
        };
        let origin = file.origin.clone();
        let secret = if provider.get("client_secret").is_some() {
            Err("client_secret is set too; remove one of them".to_owned())
        } else {
            match read(Path::new(path)) {
                Err(error) => Err(format!(
                    "cannot be read: {error}; create the file, or make it readable for the user \
                     that runs Perennial"
                )),
                Ok(text) if text.trim_end().is_empty() => {
                    Err("the file is empty; write the client secret into it".to_owned())
                }
                Ok(text) => Ok(text.trim_end().to_owned()),
            }
        };
        match secret {
            Ok(text) => {
                let value = Value::Text {
                    text,
                    shown: String::new(),
                };
                let node = Node::new(&origin, value);
                provider
                    .as_table_mut()
                    .map(|keys| keys.insert("client_secret".to_owned(), Box::new(node)));
            }
            Err(text) => out.push(Problem::new(
                &origin,
                join(&place, "client_secret_file"),
                text,
            )),
        }
    }
}

fn entries_mut<'a>(
    root: &'a mut Node,
    section: &'a str,
) -> impl Iterator<Item = (String, &'a mut Node)> {
    let entries = root.as_table_mut().and_then(|root| root.get_mut(section));
    let entries = entries.and_then(|node| node.as_table_mut());
    entries
        .into_iter()
        .flatten()
        .map(move |(name, node)| (join(section, name), &mut **node))
}
