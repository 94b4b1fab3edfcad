//! What `perennial demo` needs beside the service itself.

pub mod authorization_server;
