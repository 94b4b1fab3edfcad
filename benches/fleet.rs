//! Many credentials: their configuration, and a store that has tokens for all of them.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use perennial::{
    config::{self, Config, Environment, Input},
    credential::{LifetimeSource, TokenDetails, TokenSet},
    plugins,
    secret::Secret,
    store::{
        Store,
        cipher::{Cipher, generate_key_file},
        sqlite::{History, SqliteStore},
    },
};

/// How long each of the two tokens is.
pub const TOKEN_BYTES: usize = 500;

/// A folder with a configuration.
pub struct Fleet {
    folder: tempfile::TempDir,
    pub size: usize,
}

impl Fleet {
    /// So many credentials at one provider, without tokens.
    pub fn new(size: usize, token_url: &str, max_in_flight: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[providers.bench]\ntoken_url = \"{token_url}\"\n\
             client_id = \"bench\"\nmax_in_flight = {max_in_flight}\n[store]\nurl = \"sqlite:{}\"\n",
            folder.path().join("perennial.db").display()
        );
        for number in 0..size {
            write!(text, "[credentials.c{number}]\nprovider = \"bench\"\n").expect("strings grow");
        }
        fs::write(folder.path().join("perennial.toml"), text).expect("a file");
        Self { folder, size }
    }

    /// The same with tokens that live for a day and are due in hours.
    pub fn with_tokens(size: usize) -> Self {
        // Nobody is asked: nothing is due.
        let fleet = Self::new(size, "http://127.0.0.1:9/token", 64);
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(fleet.fill());
        fleet
    }

    async fn fill(&self) {
        let key = generate_key_file(&self.path("perennial.db.key")).expect("a key");
        let cipher = Cipher::from_base64(&key).expect("a cipher");
        let history = History {
            runs: 1,
            failed_runs: 1,
        };
        let store = SqliteStore::open(&self.path("perennial.db"), cipher, history)
            .await
            .expect("a store");
        let token = |kind: char, number: usize| {
            Secret::new(format!("{kind}{number:0width$}", width = TOKEN_BYTES - 1))
        };
        stream::iter(0..self.size)
            .for_each_concurrent(512, async |number| {
                let tokens = TokenSet {
                    access_token: token('a', number),
                    refresh_token: Some(token('r', number)),
                    details: TokenDetails {
                        issued_at: chrono_now(),
                        lifetime: Duration::from_secs(86_400),
                        lifetime_source: LifetimeSource::Answer,
                        token_type: "Bearer".into(),
                        scope: None,
                        refresh_in: None,
                        refresh_token_expires_at: None,
                    },
                };
                let name = format!("c{number}").parse().expect("a name");
                store.save(&name, 0, &tokens).await.expect("a save");
            })
            .await;
        store.close().await;
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What is in its file.
    pub fn config(&self) -> Config {
        let text = fs::read_to_string(self.path("perennial.toml")).expect("a file");
        let read = |path: &Path| fs::read_to_string(path);
        let env = Environment::default();
        let input = Input {
            file: Some(("bench", &text)),
            env: &env,
            read: &read,
        };
        let resolved = config::resolve(&input, &plugins::kinds());
        resolved.expect("a valid configuration").config
    }

    /// The release binary, serving it.
    pub fn serve(&self) -> Service {
        let started = Instant::now();
        let log = self.path("log");
        let process = Command::new(env!("CARGO_BIN_EXE_perennial"))
            .arg("serve")
            .current_dir(self.folder.path())
            .env_clear()
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).expect("a file"))
            .spawn()
            .expect("it starts");
        loop {
            let text = fs::read_to_string(&log).expect("a log");
            let listening = text.lines().find(|line| line.contains("listening"));
            if let Some(at) =
                listening.and_then(|line| line.find("127.0.0.1:").map(|at| &line[at..]))
            {
                let end = at.find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit());
                return Service {
                    took: started.elapsed(),
                    url: format!("http://{}", &at[..end.unwrap_or(at.len())]),
                    process,
                };
            }
            assert!(started.elapsed() < Duration::from_secs(60), "{text}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A running service; killed when dropped.
pub struct Service {
    /// From its start until it listened.
    pub took: Duration,
    pub url: String,
    process: Child,
}

impl Service {
    /// Its resident memory, in bytes.
    pub fn resident(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.expect("a proc file system");
        let line = status.lines().find(|line| line.starts_with("VmRSS"));
        let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
        let kilobytes: f64 = kilobytes
            .and_then(|text| text.parse().ok())
            .expect("a number");
        kilobytes * 1024.0
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn chrono_now() -> perennial::clock::Timestamp {
    std::time::SystemTime::now().into()
}
