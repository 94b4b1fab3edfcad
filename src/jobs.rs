//! The kinds of jobs, one file each.

pub mod token_refresh;
