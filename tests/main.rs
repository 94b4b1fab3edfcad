//! The integration tests: one binary, so that it links once. Each module tests one subject against
//! real parts, which `make test-parts` installs.

mod support;

mod alerts;
mod change_of_provider;
mod clocks;
mod command_line;
mod crashes;
mod dashboards;
mod disks;
mod hostile_servers;
mod keeps_alive;
mod leaks;
mod many_at_once;
mod metrics;
mod observability;
mod refresh_path;
mod soak;
mod sqlite_store;
mod stack;
mod store_contract;
mod support_works;
