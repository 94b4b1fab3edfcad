//! Many credentials: their configuration, and a store that has tokens for all of them.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use perennial::{
    clock::{Clock, SystemClock},
    config::{self, Config, Environment, Input},
    plugins,
};

use super::full_store;

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
        let now = SystemClock::new().now().wall;
        runtime.block_on(full_store::fill(fleet.folder.path(), size, now));
        fleet
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
        let mut service = Service {
            took: Duration::ZERO,
            url: String::new(),
            process,
        };
        while service.url.is_empty() {
            let text = fs::read_to_string(&log).expect("a log");
            assert!(started.elapsed() < Duration::from_secs(60), "{text}");
            let listening = text.lines().find(|line| line.contains("listening"));
            match listening.and_then(|line| line.find("127.0.0.1:").map(|at| &line[at..])) {
                Some(at) => {
                    let end = at.find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit());
                    service.took = started.elapsed();
                    service.url = format!("http://{}", &at[..end.unwrap_or(at.len())]);
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        service
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
