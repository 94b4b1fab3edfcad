//! The HTTP edge: [`listener`] binds, [`accept`] serves warp routes on it, [`body`] and
//! [`gzip`] are what the routes need and warp does not give.

pub mod accept;
pub mod body;
pub mod gzip;
pub mod listener;

#[cfg(test)]
mod testing;
