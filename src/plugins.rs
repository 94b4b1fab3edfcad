//! The one list of kinds: a new job or sink is a file of its own and one entry here.

use std::sync::Arc;

use schemars::{JsonSchema, Schema};
use serde::de::DeserializeOwned;

use crate::{
    config::{Kind, Kinds},
    job::Job,
    jobs::token_refresh,
    refresh::Refresher,
    sinks::{Sink, file::FileSink},
};

/// Makes a job from its own settings, which have been checked.
type BuildJob = fn(&toml::Table, &Arc<Refresher>) -> Result<Arc<dyn Job>, String>;

/// A kind of job: what the configuration must know, and how one is made.
pub struct JobKind {
    /// Its name, documentation and checks.
    pub kind: Kind,
    /// How one is made.
    pub build: BuildJob,
}

/// A kind of sink, likewise.
pub struct SinkKind {
    /// Its name, documentation and checks.
    pub kind: Kind,
    /// Makes one from its own settings, which have been checked.
    pub build: fn(&toml::Table) -> Result<Arc<dyn Sink>, String>,
}

/// Every kind of job.
pub const JOBS: [JobKind; 1] = [JobKind {
    kind: Kind {
        name: "token_refresh",
        summary: "keeps access tokens alive",
        schema: schema::<token_refresh::Settings>,
        check: |settings| parse::<token_refresh::Settings>(settings).map(|_| ()),
        example: "credentials = [\"*\"]\n",
    },
    build: |settings, refresher| {
        let settings = parse(settings)?;
        Ok(Arc::new(token_refresh::TokenRefresh::new(
            &settings,
            refresher.clone(),
        )))
    },
}];

/// Every kind of sink.
pub const SINKS: [SinkKind; 1] = [SinkKind {
    kind: Kind {
        name: "file",
        summary: "keeps the access token in a file, replaced atomically",
        schema: schema::<FileSink>,
        check: |settings| parse::<FileSink>(settings)?.check(),
        example: "path = \"run/acme.token\"\n",
    },
    build: |settings| Ok(Arc::new(parse::<FileSink>(settings)?)),
}];

/// The lists, as the configuration wants them.
pub fn kinds() -> Kinds {
    Kinds {
        jobs: JOBS.iter().map(|job| job.kind).collect(),
        sinks: SINKS.iter().map(|sink| sink.kind).collect(),
    }
}

/// The settings of a kind, as its own type.
pub fn parse<T: DeserializeOwned>(settings: &toml::Table) -> Result<T, String> {
    settings
        .clone()
        .try_into()
        .map_err(|error: toml::de::Error| error.message().to_owned())
}

fn schema<T: JsonSchema>() -> Schema {
    schemars::schema_for!(T)
}
