"""How the page is served: to this machine alone, with nothing open that it does not need."""

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

__all__ = ["serve"]

ADDRESS = "127.0.0.1"


def serve(page: gr.Blocks, *, port: int | None = None, is_blocking: bool = True) -> str:
    """Serve the page to this machine alone.

    Args:
        page: What ``build_app`` returned.
        port: A free port is looked for if none is given.
        is_blocking: Whether to return only when the server has been stopped with Ctrl-C.

    Returns:
        The address of the page.
    """
    # Without the check of the Host header, any web page could reach this one under a name of its
    # own that resolves to 127.0.0.1.
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", ADDRESS])
    _, address, _ = page.launch(
        server_name=ADDRESS,
        server_port=port,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        show_error=False,
        run_history=False,
        enable_monitoring=False,
        strict_cors=True,
        max_file_size="30mb",
        footer_links=[],
        prevent_thread_lock=not is_blocking,
        app_kwargs={
            "middleware": [hosts],
            "openapi_url": None,
            "docs_url": None,
            "redoc_url": None,
        },
    )
    return str(address)
