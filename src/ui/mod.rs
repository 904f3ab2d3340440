//! `sami ui`: the cache as a web page on this machine.
//!
//! Reading order: `site` (what a page is asked of), `pages` (one file each: `fn(&Site, &Query) -> Result<Page, Problem>`),
//! `html` (templates and what they can call), `problem` (what went wrong, as a page), `server` (who may ask: token, host),
//! `live` (how pages learn that something changed).
//!
//! A page reads the cache anew each time and holds nothing between two requests: gc, runs and damage go on beside it. It
//! writes nothing there but the index, as every command that reads does.

mod account;
mod charts;
mod html;
mod live;
mod pages;
mod pipelines;
mod problem;
mod query;
pub mod report;
mod server;
mod site;
mod token;

pub use problem::Problem;
pub use server::{Listen, Served, serve};
pub use site::Site;

#[cfg(test)]
mod tests;
