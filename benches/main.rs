//! What Perennial's promises cost, as ratios against baselines in the same run: `cargo bench`, or
//! one part of it: `cargo bench -- throughput`.
//!
//! Every bar is printed with what was wanted and whether it was met. Nothing fails: a machine that
//! is busy with something else misses them all.

mod fleet;
mod footprint;
#[path = "../tests/support/full_store.rs"]
mod full_store;
mod scrape;
mod throughput;
mod token_server;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

type Part = (&'static str, fn());

const PARTS: [Part; 3] = [
    ("throughput", throughput::run),
    ("scrape", scrape::run),
    ("footprint", footprint::run),
];

fn main() {
    // `cargo bench` adds `--bench`.
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    if let [role, delay] = words.as_slice()
        && role == token_server::ROLE
    {
        return token_server::serve(delay.parse().expect("milliseconds"));
    }
    for (name, run) in PARTS {
        if words.is_empty() || words.iter().any(|word| word == name) {
            println!("{name}\n");
            run();
            println!();
        }
    }
}

/// Prints one bar: what it is about, what came out, what was wanted.
fn bar(what: &str, value: f64, met: bool, wanted: &str) {
    let met = if met { "met" } else { "MISSED" };
    println!("  {what:<66}{value:>9.2}   {wanted}: {met}");
}
