//! `sami ui`: the cache as a web page.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{CommandResult, Context, DONE, context};
use crate::diag::Diagnostic;
use crate::ui::{self, Listen, Site};

/// Arguments of `ui`.
#[derive(Debug, Clone, Args)]
pub struct UiArgs {
    /// Pipeline files to show, besides those of the runs in the cache
    #[arg(value_name = "PIPELINE")]
    pub pipelines: Vec<PathBuf>,
    /// Port (default: one that is free)
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub port: u16,
    /// Listen at this address instead of this machine's own: others can then read the cache over the network, unencrypted
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", hide_default_value = true)]
    pub listen: String,
    /// Keep the token in this file, made if it is not there, so that open pages go on where `ui` is started again at the same `--port`
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Serves until an interrupt.
pub(super) fn run(context: &Context, args: &UiArgs) -> CommandResult {
    let root = context.cache_directory(args.pipelines.first().map(PathBuf::as_path))?;
    // What is wrong with the cache is told where it was typed, too; what becomes of it later, on the pages.
    crate::store::Store::open_existing(&root)?;
    let site = Site::new(std::path::absolute(root)?, args.pipelines.clone(), context.kinds().to_vec());
    let listen = Listen { host: args.listen.clone(), port: args.port, token: args.token_file.clone() };
    let mut told = Ok(());
    ui::serve(site, &listen, |served| {
        if !served.address.ip().is_loopback() {
            context::complain(&[exposed(&served.address.to_string())]);
        }
        told = if context.json() {
            context::print_json(&json!({"url": served.url, "address": served.address.to_string()}))
        } else {
            context::print(&format!("{}\nopen it in a browser on this machine; Ctrl-C ends it\n", served.url))
        };
    })?;
    told.map(|()| DONE)
}

fn exposed(address: &str) -> Diagnostic {
    Diagnostic::warning("ui::exposed", format!("{address} can be reached from other machines"))
        .note("whoever has the address that is printed, or listens on the network between, can read all that is in this cache")
        .help("leave out `--listen`, and have ssh bring the page to you: `ssh -L 8080:127.0.0.1:8080 HOST` with `--port 8080` here")
}
