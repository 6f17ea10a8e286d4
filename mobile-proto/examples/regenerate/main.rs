//! Writes `schema/*.json` and `vectors/*.json` anew: `cargo run -p keyturn-proto --example regenerate`.
//!
//! `tests/artifacts.rs` fails while the files differ from what this would write.

mod artifacts;

fn main() -> std::io::Result<()> {
    for (path, text) in artifacts::all() {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        std::fs::write(&path, text)?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}
