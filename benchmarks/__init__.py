"""Speed and memory of egnn_md, measured by ``egnn-md bench``; nothing in ``egnn_md`` imports this."""
