//! `perennial`: see the library for the map.

use std::process::ExitCode;

fn main() -> ExitCode {
    perennial::cli::run()
}
