use std::io;
use std::path::Path;

use super::*;

/// Planted wherever a secret can stand; no message may hold it.
const SECRET: &str = "hunter2";

/// Stand-in for the settings of the job kind `token_refresh`.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct TokenRefresh {
    /// The credentials to look after: names, or patterns with `*`.
    credentials: Vec<String>,
}

impl Default for TokenRefresh {
    fn default() -> Self {
        Self {
            credentials: vec!["*".to_owned()],
        }
    }
}

/// Stand-in for the settings of the sink kind `file`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "read by its schema only")]
struct FileSink {
    /// The file that holds the access token.
    #[schemars(length(min = 1), example = &"run/acme.token")]
    path: PathBuf,
    /// Its mode in octal.
    #[serde(default)]
    #[schemars(example = &"0600")]
    mode: Option<String>,
    /// What is written.
    #[serde(default)]
    format: Format,
}

#[derive(Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    /// The token alone.
    #[default]
    Raw,
    /// Token and expiry as JSON.
    Json,
}

fn kinds() -> Kinds {
    let check_credentials = |settings: &toml::Table| {
        let empty = settings.get("credentials").and_then(toml::Value::as_array);
        match empty.is_some_and(Vec::is_empty) {
            true => Err("credentials is empty; remove it to mean all".to_owned()),
            false => Ok(()),
        }
    };
    Kinds {
        jobs: vec![
            Kind {
                name: "token_refresh",
                summary: "keeps tokens alive",
                schema: || schemars::schema_for!(TokenRefresh),
                check: check_credentials,
                example: "credentials = [\"*\"]",
            },
            Kind {
                name: "noop",
                summary: "does nothing",
                schema: || schemars::json_schema!({ "type": "object", "properties": {} }),
                check: |_| Ok(()),
                example: "",
            },
        ],
        sinks: vec![Kind {
            name: "file",
            summary: "writes the access token to a file",
            schema: || schemars::schema_for!(FileSink),
            check: |_| Ok(()),
            example: "path = \"run/acme.token\"",
        }],
    }
}

fn read(path: &Path) -> io::Result<String> {
    match path.to_str() {
        Some("/run/secrets/acme") => Ok(format!("{SECRET}\n")),
        Some("/run/secrets/empty") => Ok("\n".to_owned()),
        _ => Err(io::Error::new(
            io::ErrorKind::NotFound,
            "No such file or directory",
        )),
    }
}

fn with(text: Option<&str>, env: &Environment) -> Result<Loaded, Errors> {
    let input = Input {
        file: text.map(|text| ("perennial.toml", text)),
        env,
        read: &read,
    };
    resolve(&input, &kinds())
}

fn good<const N: usize>(text: &str, env: [(&str, &str); N]) -> Loaded {
    with(Some(text), &env.into()).unwrap_or_else(|errors| panic!("{errors}"))
}

fn bad<const N: usize>(text: &str, env: [(&str, &str); N]) -> String {
    with(Some(text), &env.into())
        .expect_err("an error")
        .to_string()
}

fn lines(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(Problem::to_string).collect()
}

const ACME: &str = r#"
[providers.acme-eu]
token_url = "https://login.acme.example/token"
client_id = "me"

[credentials.one]
provider = "acme-eu"
"#;

/// One file per distinct error, the exact message beside it. `BLESS=1` writes the messages
/// anew, to be read before they are committed.
#[test]
fn invalid_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/invalid");
    let env = Environment::from([("ACME_SECRET", SECRET), ("EMPTY", "")]);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    files.sort();
    assert!(files.len() > 40, "only {} files", files.len());
    let mut wrong = Vec::new();
    for path in files {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let message = match with(Some(&text), &env) {
            Ok(_) => "(no error)".to_owned(),
            Err(errors) => errors.to_string(),
        };
        assert!(
            !message.contains(SECRET),
            "{name} repeats a secret:\n{message}"
        );
        let expected = path.with_extension("txt");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&expected, format!("{message}\n")).unwrap();
        }
        let expected = std::fs::read_to_string(&expected).unwrap_or_default();
        if expected.trim_end() != message {
            wrong.push(format!(
                "--- {name}\nexpected: {expected}\nfound:    {message}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn defaults() {
    let loaded = good(ACME, []);
    let Config {
        server,
        store,
        providers,
        credentials,
        jobs,
    } = &loaded.config;
    assert_eq!(server.listen.to_string(), "127.0.0.1:9464");
    assert_eq!(server.shutdown_timeout, Duration::from_secs(25));
    assert_eq!(loaded.config.socket_path(), Path::new("perennial.sock"));
    assert_eq!(store.sqlite_path(), Path::new("perennial.db"));
    assert_eq!(store.key_path(), Path::new("perennial.db.key"));
    let acme = &providers["acme-eu"];
    assert_eq!(acme.authentication(), ClientAuth::None);
    assert_eq!(acme.timeout, Duration::from_secs(30));
    assert_eq!((acme.min_age, acme.max_in_flight), (None, 16));
    assert_eq!(credentials["one"].grant, Grant::RefreshToken);
    let job = &jobs["token-refresh"];
    assert_eq!((job.kind.as_str(), &job.schedule), ("token_refresh", &None));
    assert_eq!(
        (job.overlap, job.misfire),
        (Overlap::Skip, Misfire::RunOnce)
    );
    assert!(job.settings.is_empty());
    assert_eq!(loaded.warnings, []);
}

#[test]
fn a_full_file() {
    let loaded = good(
        r#"
        [server]
        listen = "0.0.0.0:0"
        [store]
        url = "sqlite:///var/lib/p/p.db"
        [providers.acme]
        issuer = "http://localhost:8080"
        client_id = "me"
        client_secret_file = "/run/secrets/acme"
        min_age = "9m 30s"
        [credentials.service]
        provider = "acme"
        grant = "client_credentials"
        sinks = [{ kind = "file", path = "a.token", format = "json" }]
        [jobs.night]
        kind = "token_refresh"
        schedule = "0 3 * * *"
        timezone = "Europe/Paris"
        overlap = "queue_one"
        credentials = ["a*"]
        "#,
        [],
    );
    let config = &loaded.config;
    assert_eq!(config.store.sqlite_path(), Path::new("/var/lib/p/p.db"));
    assert_eq!(config.socket_path(), Path::new("/var/lib/p/p.sock"));
    let acme = &config.providers["acme"];
    assert_eq!(acme.client_secret.as_ref().unwrap().expose(), SECRET);
    assert_eq!(acme.authentication(), ClientAuth::Basic);
    assert_eq!(acme.min_age, Some(Duration::from_secs(570)));
    let sink = &config.credentials["service"].sinks[0];
    assert_eq!(sink.kind, "file");
    assert_eq!(sink.settings["format"].as_str(), Some("json"));
    let job = &config.jobs["night"];
    assert_eq!(job.tz(), Tz::Europe__Paris);
    assert_eq!(job.settings.keys().collect::<Vec<_>>(), ["credentials"]);
    assert_eq!(job.overlap, Overlap::QueueOne);
    assert_eq!(
        lines(&loaded.warnings),
        [
            "perennial.toml:3: server.listen: 0.0.0.0:0 is not loopback and there is no \
             authentication: anyone who can reach it can read metrics; listen on 127.0.0.1, or \
             let only trusted networks through"
        ]
    );
    assert!(!format!("{loaded:?}").contains(SECRET));
}

#[test]
fn presets_are_defaults() {
    let text = r#"
        [providers.yoto]
        preset = "yoto"
        client_id = "me"
        params = { extra = "1" }
        default_expires_in = "2h"
    "#;
    let yoto = good(text, []).config.providers.remove("yoto").unwrap();
    assert_eq!(
        yoto.token_url.as_deref(),
        Some("https://login.yotoplay.com/oauth/token")
    );
    assert_eq!(yoto.params["audience"], "https://api.yotoplay.com");
    assert_eq!(yoto.params["extra"], "1");
    assert_eq!(yoto.default_expires_in, Some(Duration::from_secs(7200)));

    let elsewhere = text.replace("preset", "issuer = \"https://other.example\"\npreset");
    let yoto = good(&elsewhere, [])
        .config
        .providers
        .remove("yoto")
        .unwrap();
    assert_eq!(yoto.token_url, None);
}

#[test]
fn variables_in_texts() {
    let text = ACME.replace("\"me\"", "\"${ID}-$${ID}\"");
    let config = good(&text, [("ID", "x")]).config;
    assert_eq!(config.providers["acme-eu"].client_id, "x-${ID}");
    assert_eq!(
        bad(&text, []),
        "perennial.toml:4: providers.acme-eu.client_id: the variable ID is not set; set it in \
         the environment or in .env"
    );
    // The environment may set the key that lacks its variable.
    good(&text, [("PERENNIAL_PROVIDERS__ACME_EU__CLIENT_ID", "y")]);
}

#[test]
fn the_environment_overrides() {
    let config = good(
        ACME,
        [
            ("PERENNIAL_SERVER__LISTEN", "[::1]:0"),
            ("PERENNIAL_SERVER__MAX_CONNECTIONS", "7"),
            ("PERENNIAL_PROVIDERS__ACME_EU__CLIENT_ID", "${not expanded}"),
            (
                "PERENNIAL_PROVIDERS__ACME_EU__PARAMS__AUDIENCE",
                "https://api",
            ),
            ("PERENNIAL_PROVIDERS__ACME_EU__ALLOW_HTTP", "true"),
            ("PERENNIAL_CREDENTIALS__ONE__SCOPES", "[\"a\", \"b\"]"),
            ("PERENNIAL_JOBS__TOKEN_REFRESH__SCHEDULE", "@daily"),
            ("PERENNIAL_JOBS__TOKEN_REFRESH__CREDENTIALS", "[\"o*\"]"),
            ("PERENNIAL_KEY_FILE", "/keys/p"),
            ("PERENNIAL_COMMIT", "0123456789ab"),
            ("PERENNIAL_LOG", "debug"),
            ("PERENNIAL_PORT", "tcp://10.0.0.1:9464"),
        ],
    )
    .config;
    assert_eq!(config.server.listen.to_string(), "[::1]:0");
    assert_eq!(config.server.max_connections, 7);
    let acme = &config.providers["acme-eu"];
    assert_eq!(acme.client_id, "${not expanded}");
    assert_eq!(acme.params["audience"], "https://api");
    assert!(acme.allow_http);
    assert_eq!(config.credentials["one"].scopes, ["a", "b"]);
    let job = &config.jobs["token-refresh"];
    assert_eq!(job.schedule.as_deref(), Some("@daily"));
    assert_eq!(job.settings["credentials"][0].as_str(), Some("o*"));
    assert_eq!(config.store.key_path(), Path::new("/keys/p"));
}

#[test]
fn the_environment_alone() {
    let env = [
        ("PERENNIAL_PROVIDERS__ACME__CLIENT_ID", "me"),
        ("PERENNIAL_PROVIDERS__ACME__ISSUER", "https://acme.example"),
        ("PERENNIAL_CREDENTIALS__ONE__PROVIDER", "acme"),
    ];
    let loaded = with(None, &env.into()).unwrap();
    assert_eq!(loaded.config.credentials["one"].provider.as_str(), "acme");
    assert_eq!(loaded.file, None);
}

#[test]
fn errors_of_the_environment() {
    let key = "AAAA";
    for (name, value, expected) in [
        (
            "PERENNIAL_SERVER__LISTENN",
            "x",
            "PERENNIAL_SERVER__LISTENN: unknown variable; did you mean PERENNIAL_SERVER__LISTEN?",
        ),
        (
            "PERENNIAL_PROVIDERS__ACME_EU__CLIENT_IDD",
            SECRET,
            "PERENNIAL_PROVIDERS__ACME_EU__CLIENT_IDD: unknown variable; did you mean \
             PERENNIAL_PROVIDERS__ACME_EU__CLIENT_ID?",
        ),
        (
            "PERENNIAL_LOGS",
            "x",
            "PERENNIAL_LOGS: unknown variable; did you mean PERENNIAL_LOG?",
        ),
        (
            "PERENNIAL_XYZZY",
            "x",
            "PERENNIAL_XYZZY: unknown variable; unset it, or write \
             PERENNIAL_<SECTION>__<KEY>, for example PERENNIAL_SERVER__LISTEN",
        ),
        (
            "PERENNIAL_SERVER__LISTEN",
            "9464",
            "PERENNIAL_SERVER__LISTEN: server.listen: \"9464\" is not an address to listen on; \
             write an IP address and a port, such as \"127.0.0.1:9464\" or \"[::1]:9464\"",
        ),
        (
            "PERENNIAL_SERVER__MAX_CONNECTIONS",
            "many",
            "PERENNIAL_SERVER__MAX_CONNECTIONS: server.max_connections: cannot be read; write a \
             whole number from 1 to 65536",
        ),
        (
            "PERENNIAL_SERVER__MAX_CONNECTIONS",
            "0",
            "PERENNIAL_SERVER__MAX_CONNECTIONS: server.max_connections: 0 is out of range; \
             write a whole number from 1 to 65536",
        ),
        (
            "PERENNIAL_KEY",
            key,
            "PERENNIAL_KEY: store.key: is not 32 bytes as base64; make one with: openssl rand \
             -base64 32",
        ),
    ] {
        assert_eq!(bad(ACME, [(name, value)]), expected);
    }
    let twice = format!("{ACME}\n[providers.acme_eu]\nissuer = \"https://a\"\nclient_id = \"b\"");
    assert_eq!(
        bad(&twice, [("PERENNIAL_PROVIDERS__ACME_EU__CLIENT_ID", "x")]),
        "PERENNIAL_PROVIDERS__ACME_EU__CLIENT_ID: means both providers.acme-eu and \
         providers.acme_eu; set it in the file"
    );
}

#[test]
fn yoto_without_a_file() {
    let loaded = with(
        None,
        &[("YOTO_CLIENT_ID", "me"), ("TOKEN_REFRESH_CRON", "")].into(),
    );
    let Loaded {
        config, warnings, ..
    } = loaded.unwrap();
    assert_eq!(config.providers["yoto"].client_id, "me");
    let credential = &config.credentials["yoto"];
    assert_eq!(credential.provider.as_str(), "yoto");
    assert_eq!(
        credential.refresh_token_file.as_deref(),
        Some(Path::new(".yoto_refresh_token"))
    );
    assert!(credential.write_back);
    assert_eq!(config.jobs["token-refresh"].schedule, None);
    assert_eq!(warnings, []);
}

#[test]
fn yoto_schedules() {
    let load = |cron: &str, hours: &str| {
        let env = [
            ("YOTO_CLIENT_ID", "me"),
            ("YOTO_REFRESH_TOKEN_FILE", "/data/.yoto_refresh_token"),
            ("TOKEN_REFRESH_CRON", cron),
            ("TOKEN_REFRESH_INTERVAL_HOURS", hours),
        ];
        with(None, &env.into())
            .map(
                |Loaded {
                     config, warnings, ..
                 }| {
                    (
                        config.jobs["token-refresh"].schedule.clone(),
                        lines(&warnings),
                    )
                },
            )
            .map_err(|errors| errors.to_string())
    };
    let schedule = |text: &str| Some(text.to_owned());
    assert_eq!(
        load("0 */12 * * *", ""),
        Ok((schedule("0 */12 * * *"), vec![]))
    );
    let old = "TOKEN_REFRESH_INTERVAL_HOURS: an old name; set TOKEN_REFRESH_CRON=\"0 */12 * * *\" \
               instead";
    assert_eq!(
        load("", "12"),
        Ok((schedule("0 */12 * * *"), vec![old.to_owned()]))
    );
    let both = "TOKEN_REFRESH_INTERVAL_HOURS: TOKEN_REFRESH_CRON is set too and wins; unset \
                TOKEN_REFRESH_INTERVAL_HOURS";
    assert_eq!(
        load("@daily", "12"),
        Ok((schedule("@daily"), vec![both.to_owned()]))
    );
    for hours in ["0", "24", "-1", "1.5", "twelve"] {
        let error = load("", hours).unwrap_err();
        assert!(
            error.starts_with(&format!("TOKEN_REFRESH_INTERVAL_HOURS: \"{hours}\"")),
            "{error}"
        );
    }
    let error = load("*/5 * * *", "").unwrap_err();
    assert!(
        error.starts_with("TOKEN_REFRESH_CRON: jobs.token-refresh: "),
        "{error}"
    );
}

#[test]
fn yoto_variables_beside_a_file() {
    let warnings = good(ACME, [("TOKEN_REFRESH_CRON", "@daily")]).warnings;
    assert_eq!(
        lines(&warnings),
        [
            "TOKEN_REFRESH_CRON: is not read where there is a configuration file; write schedule \
             = \"…\" in [jobs.NAME] and unset it"
        ]
    );
    let job = "[jobs.j]\nkind = \"noop\"\nschedule = \"${TOKEN_REFRESH_CRON}\"";
    let loaded = good(&format!("{ACME}{job}"), [("TOKEN_REFRESH_CRON", "@daily")]);
    assert_eq!(loaded.warnings, []);
}

#[test]
fn files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.toml");
    let missing = load(Some(&path), &kinds()).unwrap_err().to_string();
    assert!(
        missing.starts_with(&format!("{}: cannot be read: ", path.display())),
        "{missing}"
    );

    let secret = folder.path().join("secret");
    std::fs::write(&secret, format!("{SECRET}\r\n")).unwrap();
    let key = format!(
        "client_secret_file = {:?}\nclient_id",
        secret.display().to_string()
    );
    std::fs::write(&path, ACME.replace("client_id", &key)).unwrap();
    let loaded = load(Some(&path), &kinds()).unwrap();
    let acme = &loaded.config.providers["acme-eu"];
    assert_eq!(
        acme.client_secret.as_ref().map(Secret::expose),
        Some(SECRET)
    );
    assert_eq!(loaded.file, Some(path));
}

#[test]
fn nothing_configured() {
    let errors = with(None, &[("YOTO_CLIENT_ID", " ")].into()).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "nothing is configured: there is no perennial.toml here, and YOTO_CLIENT_ID is not set; \
         try \"perennial demo\", begin a file with \"perennial config > perennial.toml\", or set \
         YOTO_CLIENT_ID"
    );
}

#[test]
fn no_credentials_is_a_warning() {
    let warnings = good("", []).warnings;
    assert_eq!(
        lines(&warnings),
        [
            "credentials: none is configured, so there is no token to keep alive; add \
             [credentials.NAME]"
        ]
    );
}

#[test]
fn clear_text_is_a_warning_where_allowed() {
    let text = ACME
        .replace("https://login", "http://login")
        .replace("client_id", "allow_http = true\nclient_id");
    assert_eq!(
        lines(&good(&text, []).warnings),
        [
            "perennial.toml:3: providers.acme-eu.token_url: tokens and secrets travel in clear \
             text; write https:// and remove allow_http"
        ]
    );
}

#[test]
fn the_example_loads() {
    let example = example(&kinds());
    let loaded = good(&example, [("YOTO_CLIENT_ID", "me")]);
    assert_eq!(loaded.warnings, []);
    assert_eq!(
        loaded.config.credentials["family-player"].provider.as_str(),
        "yoto"
    );
}

/// Every commented key, by itself made live, is one that the loader takes.
#[test]
fn every_key_of_the_example_is_right() {
    let example = example(&kinds());
    let env = Environment::from([
        ("YOTO_CLIENT_ID", "me"),
        ("ACME_CLIENT_SECRET", "x"),
        ("STORE_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
    ]);
    let lines: Vec<&str> = example.lines().collect();
    let mut keys = 0;
    let mut block = false;
    for (i, line) in lines.iter().enumerate() {
        // Blocks of kinds that are not in use have a header of their own.
        block = (block || line.starts_with("# [")) && !line.starts_with('[');
        let Some(key) = line.strip_prefix("# ") else {
            continue;
        };
        let is_key = key.split_once(" = ").is_some_and(|(word, _)| {
            !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        });
        if !is_key || block {
            continue;
        }
        keys += 1;
        let mut changed = lines.clone();
        changed[i] = key;
        let Err(errors) = with(Some(&changed.join("\n")), &env) else {
            continue;
        };
        // Keys that need others do say so, in the words of the rules.
        let needs = [
            "there is no secret",
            "sends no secret",
            "cannot be read",
            "no file to keep",
        ];
        for problem in errors.problems() {
            assert!(
                needs.iter().any(|words| problem.text.contains(words)),
                "{key}: {problem}"
            );
        }
    }
    assert!(keys >= 30, "only {keys} keys");
}
