//! The `sami` binary; everything is in the library.

fn main() -> std::process::ExitCode {
    sami::cli::run()
}
