//! What a service takes before it does anything: memory, and time to start.

use std::time::{Duration, Instant};

use perennial::store::cipher::{Cipher, read_key_file};

use super::{bar, fleet::Fleet, full_store::TOKEN_BYTES};

pub fn run() {
    let small = Fleet::with_tokens(100).serve().settled();
    println!("  100 credentials{:>50.1} MB resident", small / 1e6);
    bar(
        "MB resident with 100 credentials",
        small / 1e6,
        small <= 25e6,
        "at most 25",
    );

    let fleet = Fleet::with_tokens(10_000);
    let service = fleet.serve();
    let started = service.took.as_secs_f64();
    let medium = service.settled();
    println!("  10,000 credentials{:>47.1} MB resident", medium / 1e6);
    drop(service);
    let bare = read_and_decrypt(&fleet);
    println!(
        "    from the start until it listens{:>29.1} ms\n    \
         a bare read and decryption of the same rows{:>17.1} ms",
        started * 1e3,
        bare * 1e3
    );
    let ratio = started / bare;
    bar(
        "start of the bare read and decryption",
        ratio,
        ratio <= 5.0,
        "at most 5.00",
    );

    let large = Fleet::with_tokens(100_000).serve().settled();
    println!("  100,000 credentials{:>46.1} MB resident", large / 1e6);
    let each = (large - medium) / 90_000.0 - 2.0 * TOKEN_BYTES as f64;
    bar(
        "bytes beside its tokens for each credential beyond 10,000",
        each,
        each <= 2048.0,
        "at most 2048",
    );
}

/// Seconds.
fn read_and_decrypt(fleet: &Fleet) -> f64 {
    let key = read_key_file(&fleet.path("perennial.db.key")).expect("a key");
    let cipher = Cipher::from_base64(&key).expect("a cipher");
    let started = Instant::now();
    let db = rusqlite::Connection::open(fleet.path("perennial.db")).expect("a database");
    let mut rows = db
        .prepare("SELECT name, version, sealed FROM credentials")
        .expect("a table");
    let rows = rows.query_map([], |row| {
        Ok((
            row.get::<_, String>(0)?,
            row.get::<_, i64>(1)?,
            row.get::<_, Vec<u8>>(2)?,
        ))
    });
    let opened = rows.expect("rows").filter(|row| {
        let (name, version, sealed) = row.as_ref().expect("a row");
        let key_id = cipher.key_id();
        let context = format!("perennial credential v1 {key_id} {name} {version}");
        let plain = cipher.open(&context, sealed).expect("it opens");
        plain.len() > 2 * TOKEN_BYTES
    });
    assert_eq!(opened.count(), fleet.size);
    started.elapsed().as_secs_f64()
}

impl super::fleet::Service {
    /// Its resident memory after a while, in bytes.
    fn settled(&self) -> f64 {
        std::thread::sleep(Duration::from_secs(2));
        self.resident()
    }
}
