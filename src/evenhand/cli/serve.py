"""`evenhand serve`."""

from __future__ import annotations

import typer

from evenhand.cli.options import ConfigDir, Overrides, PrintConfig, override_command, typed_config


@override_command("serve")
def serve_command(overrides: Overrides = None, config_dir: ConfigDir = None, print_config: PrintConfig = False) -> None:
    """Serve an encoder over the Open Inference Protocol v2, or edit images on their way to such a server, or to a service.

    It prints one line with its address when it is ready. SIGTERM or Ctrl-C: what is inside is finished, then it ends with exit code 0.

    Example: evenhand serve model=encoder.pth port=8080
    Example: evenhand serve edit=edit.safetensors upstream=https://api.example.org
    Example: evenhand serve edit=edit.safetensors upstream=https://us-central1-aiplatform.googleapis.com upstream_api=cxr_foundation
    """
    config = typed_config("serve", overrides, config_dir, print_config)

    from evenhand.optional import require, require_torch

    require_torch()
    for package in ("fastapi", "uvicorn"):
        require(package, "serve", "evenhand serve")

    from evenhand.serve.run import serve

    serve(config, typer.echo)
