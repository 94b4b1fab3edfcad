//! `perennial`: see the library for the map.

use std::process::ExitCode;

/// A quarter less time for each refresh than glibc's, which consolidates its heap whenever
/// something longer than a kilobyte is asked for, and tokens are; and it gives memory back.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    perennial::cli::run()
}
