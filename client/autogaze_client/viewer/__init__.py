"""The viewer page of ``autogaze view`` (extra ``view``): what AutoGaze looks at, live in a browser."""
