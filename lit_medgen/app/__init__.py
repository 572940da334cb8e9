"""The page of the verb `app`: a model in a browser on this machine.

`desk` makes images and files of what a visitor wishes, `maps` holds label maps as they are painted, `views` what is
seen of an image, `answers` what the page answers; none of them knows gradio. `page` and `wish_inputs` are the page,
`serving` is the server, which listens on 127.0.0.1 alone.
"""
