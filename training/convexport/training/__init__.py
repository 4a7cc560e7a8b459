"""Images and labels -> checkpoint and report. Needs torch and torchvision: `pip install 'convexport[train]'`."""
