"""``autogaze view``: a page that shows what AutoGaze looks at, live."""

from __future__ import annotations

import argparse

from autogaze_client._commands.connection import add_connection_options, chosen_connection


class Command:
    """Implements the subcommand."""

    help = "serve a page that plays a camera, a file or a test picture and shows the gaze live"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the subcommand's options."""
        add_connection_options(parser)
        parser.add_argument(
            "--host", default="127.0.0.1", help="address the page listens on (default: %(default)s)"
        )
        parser.add_argument(
            "--port", type=int, default=8090, help="its port; 0 takes a free one (default: %(default)s)"
        )
        parser.add_argument("--open", action="store_true", help="open the page in the browser")

    def run(self, args: argparse.Namespace) -> int:
        """Runs it; returns the exit status."""
        from autogaze_client._async_client import AsyncGazeClient
        from autogaze_client.viewer.serving import ViewerServer

        arguments = chosen_connection(args).arguments()
        with ViewerServer(
            args.url, host=args.host, port=args.port, connect=lambda: AsyncGazeClient(**arguments)
        ) as viewer:
            print(f"the viewer is at {viewer.page_url} and asks the server at {args.url}; Ctrl-C ends it")
            if args.open:
                import webbrowser

                webbrowser.open(viewer.page_url)
            viewer.wait()
        return 0
